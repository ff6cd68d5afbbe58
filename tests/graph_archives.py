"""Small collaboration networks in the layout that the laboratory reads."""

import io
import tarfile

from flatmin_lab.data.graphs import ARCHIVE, FIELDS, LEAST_COLLABORATORS

STAR = LEAST_COLLABORATORS  # leaves of the authors that have an ego network


def archive(folder, networks):
    """An archive of edge lists by file name."""
    with tarfile.open(folder / ARCHIVE, "w:xz") as opened:
        for name, lines in networks.items():
            content = "\n".join(["# FromNodeId\tToNodeId", *lines]).encode()
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return folder


def stars(count, wheel=0):
    """``count`` authors in the middle of a star, of which ``wheel`` leaves know the next; pairs in both directions."""
    lines = []
    for hub in range(0, 100 * count, 100):
        lines += [f"{hub}\t{hub + leaf}" for leaf in range(1, STAR + 1)]
        lines += [f"{hub + leaf + 1}\t{hub + leaf}" for leaf in range(1, wheel + 1)]
    return [*lines, *("\t".join(reversed(line.split("\t"))) for line in lines), "7\t7"]


def small_archive(folder):
    return archive(folder, {name: stars(3, wheel=2 * label) for label, name in enumerate(FIELDS.values())})
