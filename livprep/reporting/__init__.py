"""The whole store on one page (`livprep report`): what is in it, and what stands out."""

from livprep.reporting.facts import CaseFacts, FactsJob, collect
from livprep.reporting.page import write_report

__all__ = ["CaseFacts", "FactsJob", "collect", "write_report"]
