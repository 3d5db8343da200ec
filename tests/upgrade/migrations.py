"""Whether migrations let the release before them go on.

An additive migration adds tables, indexes, and columns that need no value. Whatever an older release
reads or writes must stay as it is.
"""

import re

# Found in one clause of a statement.
BREAKING = [
    (r"\bDROP\b", "drops something"),
    (r"\bRENAME\b", "renames something"),
    (r"\bALTER (COLUMN )?\S+ (SET DATA )?TYPE\b", "changes a type"),
    (r"\bSET NOT NULL\b", "demands a value that the older release may not give"),
    (r"\bADD\b(?!.*\bDEFAULT\b).*\bNOT NULL\b", "adds a column that needs a value"),
    (r"\bADD (CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b", "forbids what the older release may write"),
    (r"\b(DELETE FROM|TRUNCATE)\b {older}", "takes rows away"),
]

# What must be found, so that a check which finds nothing has looked.
EXAMPLES = [
    ("ALTER TABLE t DROP COLUMN a", 1),
    ("ALTER TABLE t RENAME a TO b; -- b", 1),
    ("alter table t alter column a type bigint", 1),
    ("ALTER TABLE t ALTER a SET NOT NULL", 1),
    ("ALTER TABLE t ADD COLUMN a TEXT NOT NULL, ADD COLUMN b TEXT NOT NULL DEFAULT ''", 1),
    ("ALTER TABLE t ADD a NUMERIC(3, 1) DEFAULT 0 NOT NULL", 0),
    ("ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)", 1),
    ("DELETE FROM t; TRUNCATE t", 2),
    ("CREATE TABLE t (a TEXT); DELETE FROM t x WHERE x.a = 'b'; DELETE FROM tt", 1),
    ("-- DROP\nALTER TABLE t ADD COLUMN a TEXT; CREATE INDEX i ON t (a) WHERE a IS NOT NULL", 0),
    ("CREATE TABLE t (a TEXT NOT NULL)", 0),
    ("UPDATE t SET a = 1 WHERE b IS NOT NULL", 0),
]


def plain(sql):
    """Without comments."""
    return re.sub(r"--[^\n]*|/\*.*?\*/", " ", sql, flags=re.S)


def made_tables(sql):
    """The tables that a migration makes: no older release knows them."""
    return {name.lower() for name in re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", plain(sql), re.I)}


def faults(sql):
    """What in a migration would break the release before it, one sentence each."""
    made = "|".join(made_tables(sql))
    older = rf"(?!({made})\b)" if made else ""
    clauses = (
        " ".join(clause.split())
        for statement in plain(sql).split(";")
        if not re.match(r"\s*CREATE TABLE\b", statement, re.I)  # no older release knows it
        for clause in re.split(r",(?![^(]*\))", statement)
    )
    return [
        f"{what}: {clause}"
        for clause in clauses
        for pattern, what in BREAKING
        if re.search(pattern.replace("{older}", older), clause, re.I)
    ]


def older_tables(pattern, sql):
    """The tables that a pattern names, but for those that the migration makes itself."""
    return sorted({name for name in re.findall(pattern, plain(sql), re.I) if name.lower() not in made_tables(sql)})


def blocks_writes(sql):
    """Tables, perhaps large ones, to which writes wait while an index is built."""
    return older_tables(r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)[^;]*?\bON (\w+)", sql)


def widened(sql):
    """Tables that get more columns."""
    return older_tables(r"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?(\w+)\s+(?:[^;]*,\s*)?ADD (?:COLUMN )?(?!CONSTRAINT|CHECK)", sql)


for example, count in EXAMPLES:
    assert len(faults(example)) == count, (example, faults(example))

assert widened("ALTER TABLE t\n  ADD a TEXT; CREATE TABLE u (); ALTER TABLE u ADD COLUMN b TEXT") == ["t"]
