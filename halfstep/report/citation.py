"""BibTeX of a report: halfstep in its version, and the papers of its method."""

import re

from halfstep.evaluation.report_data import AnyReport, Report

PROGRESSIVE = """@inproceedings{salimans2022progressive,
  author    = {Salimans, Tim and Ho, Jonathan},
  title     = {Progressive Distillation for Fast Sampling of Diffusion Models},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""
GUIDED = """@inproceedings{meng2023distillation,
  author    = {Meng, Chenlin and Rombach, Robin and Gao, Ruiqi and Kingma, Diederik and Ermon, Stefano and
               Ho, Jonathan and Salimans, Tim},
  title     = {On Distillation of Guided Diffusion Models},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages     = {14297--14306},
  year      = {2023}
}"""


def bibtex(report: AnyReport) -> str:
    """Entries of halfstep, with version, date and run of the report, and of the papers that it rests on."""
    made = report.provenance
    run = f"Report of the run {escaped(report.run.folder)}"
    fields = {
        "author": "{The halfstep authors}",
        "title": "{halfstep: progressive distillation of diffusion models}",
        "version": made.halfstep,
        "year": made.date and made.date[:4],
        "note": ", ".join(filter(None, [run, made.date, made.commit and f"commit {made.commit}"])),
    }
    lines = [f"  {name:<7} = {{{value}}}" for name, value in fields.items() if value]
    entries = ["@software{halfstep,\n" + ",\n".join(lines) + "\n}", PROGRESSIVE]
    if isinstance(report, Report) and report.guided:
        entries.append(GUIDED)
    return "\n\n".join(entries) + "\n"


def escaped(text: str) -> str:
    """A text with the special characters of TeX escaped."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda m: named.get(m[0], "\\" + m[0]), text)
