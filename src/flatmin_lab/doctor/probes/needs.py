"""Say of every task which files it lacks, and of every reproduction how far each size of it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flatmin_lab.doctor.probes.speaking import in_words, say, take_output


def main() -> None:
    """Say all of it; the argument, if there is one, is the data root."""
    take_output()
    from flatmin_lab.data.root import VARIABLE
    from flatmin_lab.recipes.registry import SIZES
    from flatmin_lab.recipes.reproductions import REPRODUCTIONS
    from flatmin_lab.reproduction import folder_for, state
    from flatmin_lab.tasks import TASKS

    if sys.argv[1:]:
        os.environ[VARIABLE] = sys.argv[1]
    root = os.environ.get(VARIABLE, "")
    for name, task in TASKS.items():
        files = task.files() if callable(task.files) else task.files
        lacking = {file: source for file, source in files.items() if not root or not (Path(root) / file).is_file()}
        say(task=name, files=len(files), lacking=lacking)
    for name in REPRODUCTIONS:
        for size in SIZES:
            try:
                say(recipe=name, size=size, state=state(name, size, folder_for(name, size)))
            except Exception as error:  # noqa: BLE001 (one recipe that cannot say leaves the others their turn)
                say(recipe=name, size=size, state=in_words(error))


if __name__ == "__main__":
    main()
