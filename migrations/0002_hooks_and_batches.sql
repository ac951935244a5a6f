-- What is known of accounts and hooks beyond their configuration, batches that close, and bodies that a hook gets in
-- place of the event's own.

-- The account's lost time when the first of the 404s in a row came: beside `missing_at`, as `lost_base` is beside
-- `first_polled_at`.
ALTER TABLE watches ADD COLUMN missing_base INTEGER;

-- A watch is overdue since it was inserted, and not since 1970: or new ones would always go before those that wait.
CREATE TRIGGER watches_due_at_once AFTER INSERT ON watches WHEN NEW.due_at = 0
BEGIN
    UPDATE watches SET due_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) WHERE id = NEW.id;
END;

UPDATE watches SET due_at = created_at WHERE due_at = 0;

-- Anew, for another closure and for the instant until which the API asked to be left alone.
CREATE TABLE accounts_2 (
    name          TEXT PRIMARY KEY,
    closure       TEXT CHECK (closure IN ('unauthorized', 'unpaid', 'untrusted', 'broken')),
    closed_at     INTEGER,
    next_probe_at INTEGER,
    last_error    TEXT,
    -- Requests a second, where it was found out that the API wants less than is configured.
    rate          REAL CHECK (rate > 0),
    held_until    INTEGER,
    -- The time, in milliseconds, that was not the assets', until `closed_at` if there is one: only differences have a
    -- meaning.
    lost_ms       INTEGER NOT NULL DEFAULT 0,
    CHECK ((closure IS NULL) = (closed_at IS NULL))
) STRICT;
INSERT INTO accounts_2 (name, closure, closed_at, next_probe_at, last_error, lost_ms)
    SELECT name, closure, closed_at, next_probe_at, last_error, lost_ms FROM accounts;
DROP TABLE accounts;
ALTER TABLE accounts_2 RENAME TO accounts;

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

-- First attempts and later ones are claimed in turn, so each kind has a schedule of its own.
DROP INDEX deliveries_due;
CREATE INDEX deliveries_first ON deliveries (hook, due_at)
    WHERE state = 'waiting' AND lease_until IS NULL AND attempts = 0;
CREATE INDEX deliveries_again ON deliveries (hook, due_at)
    WHERE state = 'waiting' AND lease_until IS NULL AND attempts > 0;

-- A claim and a stop look for attempts that nobody has finished.
CREATE INDEX attempts_unfinished ON attempts (owner) WHERE outcome IS NULL;
CREATE INDEX deliveries_undelivered ON deliveries (hook, state) WHERE state IN ('dead', 'held');
-- In order, to be gone through in portions; SQLite does not see that the condition above follows from this one.
CREATE INDEX deliveries_dead ON deliveries (hook) WHERE state = 'dead';
