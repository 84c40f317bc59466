"""Whether Ray runs in this process. What can do without it does not import it, which takes seconds."""

import sys


def ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()
