"""Make the picture of the README, docs/images/demo.png, and the table below it, from the demonstration itself.

The table goes between `<!-- demonstration -->` and `<!-- end -->` in README.md.
"""

import re
from pathlib import Path

from steadyflow._internal import plots
from steadyflow_lab import demo, report

result = demo.study(explain=False, progress=print)
figure = plots.figure(1.45 * (1 + len(result.shown)), 1.55 * (2 + len(result.guidances)))
report.draw_overview(result, figure, report.chosen(result))
path = Path("docs/images/demo.png")
plots.save(figure, path, dpi=110)
heads, cells = demo.table(result)
lines = [heads[:-1], ["---"] * (len(heads) - 1), *(row[:-1] for row in cells)]
table = "\n".join(f"| {' | '.join(cell.replace('max |x|', 'max abs(x)') for cell in line)} |" for line in lines)
readme = Path("README.md")
text = readme.read_text(encoding="utf-8")
readme.write_text(
    re.sub(r"(<!-- demonstration -->\n).*?(<!-- end -->)", rf"\1\n{table}\n\n\2", text, flags=re.DOTALL),
    encoding="utf-8",
)
print(path)
print(demo.sentence(result))
