"""Corpora on disk: what each layout's reader makes of it."""

# The layouts that `--format` names, and the reader of each: imported where it is used, since `ser --help` names them.
FORMATS = {
    "iemocap": "ser.extract.corpora.iemocap:read_iemocap",
    "emodb": "ser.extract.corpora.emodb:read_emodb",
    "table": "ser.extract.corpora.table:read_table",
}
