"""What a person sees of a stage that trains: on the console, in log.txt, in TensorBoard, in a tracker."""

from dataclasses import dataclass
from typing import Self

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartBank
from npdraw_dist.pipeline.painting import bank_sheet
from npdraw_dist.pipeline.progress import Show, console
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.tracking import Tracked
from npdraw_dist.training.events import Events
from npdraw_dist.training.metrics_log import RECENT, Record


@dataclass(frozen=True)
class StageDisplay:
    """Shows progress and lines of a stage on the console of the driver.

    events: for the rows between validations; the others are written where they are reported.
    """

    stage: str
    bar: Show
    events: Events
    tracked: Tracked | None

    @classmethod
    def of(cls, store: Store, stage: str, bar: Show) -> Self:
        return cls(stage, bar, Events(store.filesystem, store.path(stage)), store.tracked)

    def show(self, images_seen: int, images_per_s: float, note: str) -> None:
        self.bar(images_seen, images_per_s, note)

    def say(self, line: str) -> None:
        console.print(f"{self.stage}: {line}", markup=False)  # an error's text can look like markup

    def record(self, row: Record) -> None:
        if any(name.startswith(RECENT) for name in row):
            self.events.add_between(row)
        if self.tracked is not None:
            self.tracked.log(row, self.stage)


def begin_events(
    experiment: Experiment, store: Store, stage: str, metric: str, bank: PartBank | None
) -> None:
    """What TensorBoard shows from the start of a stage: settings that decide the result, and the bank.

    metric: by which it compares runs.
    """
    pictures = {} if bank is None or not experiment.train.pictures else {"bank": bank_sheet(bank)}
    events = Events(store.filesystem, store.path(stage))
    events.begin(flat(experiment.deciding()), metric, pictures)
