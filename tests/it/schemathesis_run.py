"""Schemathesis with one change: a wait that the API would grant for minutes is asked for as one of a second.

It is a real long poll all the same, and what is no time that the description allows goes out as it is.
"""

import re
import sys

import schemathesis
from schemathesis.cli import schemathesis as command_line


@schemathesis.hook
def before_call(context, case, kwargs):
    wait = (case.query or {}).get("wait")
    if isinstance(wait, str) and re.fullmatch("[1-9][0-9]{0,2}(s|m)", wait):
        case.query["wait"] = "1s"


sys.exit(command_line())
