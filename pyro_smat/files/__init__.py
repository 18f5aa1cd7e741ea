"""Files: how everything that is kept gets onto the disk, and back: whole, or refused.

Bytes, plain JSON values or nested states of tensors go in; a file appears under its name only when it is complete.
"""

from pyro_smat.files.atomic import remove_leftovers, replacing, write_atomically
from pyro_smat.files.lock import locked
from pyro_smat.files.plain import plain, write_json
from pyro_smat.files.records import content_digest, read_json, read_record, write_record
from pyro_smat.files.state import load_state, save_state

__all__ = [
    "content_digest",
    "load_state",
    "locked",
    "plain",
    "read_json",
    "read_record",
    "remove_leftovers",
    "replacing",
    "save_state",
    "write_atomically",
    "write_json",
    "write_record",
]
