"""Reporting: how what was measured is stored and shown."""

from kerasdef.reporting.report import Report as Report
from kerasdef.reporting.sections import Section as Section
