"""One HTML file about a run, or about a sweep; what stands in a folder is text and numbers, whoever wrote it."""

from cnnlab.report.page import Page
from cnnlab.report.run import report_run
from cnnlab.report.sweep import report_sweep

__all__ = ["Page", "report_run", "report_sweep"]
