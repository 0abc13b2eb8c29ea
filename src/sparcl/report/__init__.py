"""Reads what runs left behind (config.toml, result.json, events.jsonl) and compares them. Imports no torch.

records.py finds and checks the records, tables.py groups them over seeds and writes tables beside the figures of the
literature (sparcl/published.py). events.py and course.py read what happened in a run. page.py and page.html make the
page that stands alone in a browser: figures.py compares groups, detail.py and words.py tell of one run, svg.py draws.
"""

from sparcl.report.records import Problem as Problem
from sparcl.report.records import Record as Record
from sparcl.report.records import load as load
from sparcl.report.tables import FORMATS as FORMATS
from sparcl.report.tables import Group as Group
from sparcl.report.tables import group as group
from sparcl.report.write import write as write
