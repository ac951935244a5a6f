-- What is known of hooks beyond their configuration, batches that close, and bodies that a hook gets in place of the
-- event's own.

-- A hook is there when something was learned of it: `name` is that of the configuration, or `callback:` and an origin.
CREATE TABLE hooks (
    name            TEXT PRIMARY KEY,
    -- Nothing is attempted until a person enables it again.
    disabled_at     INTEGER,
    disabled_reason TEXT,
    -- The receiver asked to be left alone until then.
    held_until      INTEGER,
    -- Failed attempts in a row, over all of its deliveries, and the first of them.
    failures        INTEGER NOT NULL DEFAULT 0,
    failing_since   INTEGER,
    -- With an open breaker: when one attempt is made to see whether it works again.
    next_probe_at   INTEGER,
    last_success_at INTEGER,
    last_error      TEXT,
    CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CHECK ((failures = 0) = (failing_since IS NULL))
) STRICT;

-- What belongs together. A closed batch takes no more watches, and is settled when the last one has ended.
CREATE TABLE batches (
    name       TEXT PRIMARY KEY
        CONSTRAINT "a batch's name has 1 to 128 characters" CHECK (length(name) BETWEEN 1 AND 128),
    created_at INTEGER NOT NULL,
    closed_at  INTEGER,
    settled_at INTEGER,
    CHECK (settled_at IS NULL OR closed_at IS NOT NULL)
) STRICT;

INSERT INTO batches (name, created_at)
    SELECT batch, min(created_at) FROM watches WHERE batch IS NOT NULL GROUP BY batch;

-- Other programs insert watches as well, so the table itself sees to both.
CREATE TRIGGER watches_batch_closed BEFORE INSERT ON watches
    WHEN NEW.batch IS NOT NULL AND EXISTS (SELECT 1 FROM batches WHERE name = NEW.batch AND closed_at IS NOT NULL)
BEGIN
    SELECT raise(ABORT, 'the batch is closed: it takes no more watches');
END;

CREATE TRIGGER watches_batch_created AFTER INSERT ON watches
    WHEN NEW.batch IS NOT NULL AND NOT EXISTS (SELECT 1 FROM batches WHERE name = NEW.batch)
BEGIN
    INSERT INTO batches (name, created_at) VALUES (NEW.batch, NEW.created_at);
END;

CREATE INDEX watches_batch_waiting ON watches (batch) WHERE state = 'waiting' AND batch IS NOT NULL;

-- What is sent in place of the event's body: a template of the hook's, rendered once.
ALTER TABLE deliveries ADD COLUMN body BLOB;

-- A claim and a stop look for attempts that nobody has finished.
CREATE INDEX attempts_unfinished ON attempts (owner) WHERE outcome IS NULL;
CREATE INDEX deliveries_undelivered ON deliveries (hook, state) WHERE state IN ('dead', 'held');
