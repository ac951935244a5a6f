-- The database is an interface: other programs insert into `watches` and read every table.
-- Instants (`*_at`, `*_until`) are Unix milliseconds. Defaults are evaluated by the other program's SQLite, so they use
-- only functions that 3.38 has.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- An asset followed until it settles.
CREATE TABLE watches (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    -- One path segment of a URL: what `add` refuses is refused here too.
    asset_id        TEXT    NOT NULL
        CONSTRAINT "an asset id must not be empty" CHECK (asset_id <> '')
        CONSTRAINT "an asset id must not be . or .." CHECK (asset_id NOT IN ('.', '..'))
        CONSTRAINT "an asset id has at most 512 bytes" CHECK (length(CAST(asset_id AS BLOB)) <= 512)
        CONSTRAINT "an asset id must not contain control characters" CHECK (
            instr(CAST(asset_id AS BLOB), x'00') = 0
            AND asset_id NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*')
        CONSTRAINT "an asset id must be valid UTF-8" CHECK (asset_id NOT GLOB '*' || char(65533) || '*'),
    account         TEXT    NOT NULL DEFAULT 'default'
        CONSTRAINT "an account's name has 1 to 64 characters" CHECK (length(account) BETWEEN 1 AND 64),
    state           TEXT    NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'settled', 'abandoned', 'cancelled')),
    due_at          INTEGER DEFAULT 0,
    generation      INTEGER NOT NULL DEFAULT 0,
    lease_owner     TEXT,
    lease_until     INTEGER,
    patience        INTEGER CHECK (patience > 0),
    polls           INTEGER NOT NULL DEFAULT 0,
    waiting_streak  INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    rejections      INTEGER NOT NULL DEFAULT 0,
    missing_at      INTEGER,
    status          TEXT,
    type            TEXT,
    url             TEXT,
    width           INTEGER,
    height          INTEGER,
    duration        INTEGER,
    frames          INTEGER,
    reason          TEXT CHECK (reason IN ('missing', 'rejected', 'patience')),
    last_error      TEXT,
    batch           TEXT
        CONSTRAINT "a batch's name has 1 to 128 characters" CHECK (length(batch) BETWEEN 1 AND 128),
    metadata        TEXT
        CONSTRAINT "metadata must be JSON of at most 16 KiB"
        CHECK (metadata IS NULL OR (json_valid(metadata) AND length(CAST(metadata AS BLOB)) <= 16384)),
    callback_url    TEXT CHECK (length(callback_url) <= 2048),
    created_at      INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    first_polled_at INTEGER,
    last_polled_at  INTEGER,
    processing_at   INTEGER,
    waiting_at      INTEGER,
    settled_at      INTEGER,
    lost_base       INTEGER,
    CHECK ((state = 'waiting') = (due_at IS NOT NULL)),
    CHECK ((state = 'waiting') = (settled_at IS NULL)),
    CHECK ((state = 'abandoned') = (reason IS NOT NULL)),
    CHECK (state <> 'settled' OR status IS NOT NULL),
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (state = 'waiting' OR lease_owner IS NULL)
) STRICT;

CREATE UNIQUE INDEX watches_waiting ON watches (account, asset_id) WHERE state = 'waiting';
-- The schedule: a free watch is in the first index, a leased one in the second.
CREATE INDEX watches_due ON watches (account, due_at) WHERE state = 'waiting' AND lease_until IS NULL;
CREATE INDEX watches_leased ON watches (account, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX watches_asset ON watches (asset_id);
CREATE INDEX watches_batch ON watches (batch) WHERE batch IS NOT NULL;

-- A fact told to others. `seq` is the order in which facts were committed. `id` is a hash of the watch and the type, so
-- the index below makes it unique as well, and writes beside its neighbours where one on the hash would write anywhere.
CREATE TABLE events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL,
    watch_id   INTEGER REFERENCES watches (id) ON DELETE CASCADE,
    type       TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX events_watch ON events (watch_id, type);

-- One event for one hook, at least once.
CREATE TABLE deliveries (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    event_seq   INTEGER NOT NULL REFERENCES events (seq) ON DELETE CASCADE,
    hook        TEXT    NOT NULL,
    watch_id    INTEGER,
    state       TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead', 'held')),
    due_at      INTEGER,
    generation  INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT,
    lease_until INTEGER,
    attempts    INTEGER NOT NULL DEFAULT 0,
    failures    INTEGER NOT NULL DEFAULT 0,
    last_error  TEXT,
    created_at  INTEGER NOT NULL,
    finished_at INTEGER,
    UNIQUE (event_seq, hook),
    CHECK ((state = 'waiting') = (due_at IS NOT NULL)),
    CHECK ((state IN ('delivered', 'dead')) = (finished_at IS NOT NULL)),
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (state = 'waiting' OR lease_owner IS NULL)
) STRICT;

CREATE INDEX deliveries_due ON deliveries (hook, due_at) WHERE state = 'waiting' AND lease_until IS NULL;
CREATE INDEX deliveries_leased ON deliveries (hook, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX deliveries_watch ON deliveries (watch_id, hook);

-- One try at a delivery: written by the claim, before anything is sent, and finished after it.
CREATE TABLE attempts (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    delivery_id INTEGER NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
    number      INTEGER NOT NULL,
    owner       TEXT    NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER,
    -- `unknown`: the sender is gone, and it may have been received.
    outcome     TEXT CHECK (outcome IN ('delivered', 'failed', 'refused', 'blocked', 'interrupted', 'unknown')),
    code        INTEGER,
    error       TEXT,
    output      BLOB,
    errors      BLOB,
    UNIQUE (delivery_id, number),
    CHECK ((outcome IS NULL) = (finished_at IS NULL))
) STRICT;

-- What is known of an account beyond its configuration.
CREATE TABLE accounts (
    name          TEXT PRIMARY KEY,
    closure       TEXT CHECK (closure IN ('unauthorized', 'unpaid', 'broken')),
    closed_at     INTEGER,
    next_probe_at INTEGER,
    last_error    TEXT,
    rate          REAL,
    lost_ms       INTEGER NOT NULL DEFAULT 0,
    CHECK ((closure IS NULL) = (closed_at IS NULL))
) STRICT;

-- The daemons that work on this database; one with a fresh heartbeat is alive.
CREATE TABLE daemons (
    owner        TEXT PRIMARY KEY,
    pid          INTEGER NOT NULL,
    host         TEXT    NOT NULL,
    started_at   INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL
) STRICT;
