-- A database of schema 2, as `sqlite3 assetwatch.db .dump` prints it, with what it leaves out: these.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 0x61577463;
PRAGMA user_version = 2;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
INSERT INTO meta VALUES('install_id','d2n4k6m8p0r2t4v6w8x0y2z4a6');
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
    lost_base       INTEGER, missing_base INTEGER,
    CHECK ((state = 'waiting') = (due_at IS NOT NULL)),
    CHECK ((state = 'waiting') = (settled_at IS NULL)),
    CHECK ((state = 'abandoned') = (reason IS NOT NULL)),
    CHECK (state <> 'settled' OR status IS NOT NULL),
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (state = 'waiting' OR lease_owner IS NULL)
) STRICT;
INSERT INTO watches VALUES(3,'ast_new','default','waiting',1790000000000,0,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1790000000000,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO watches VALUES(4,'ast_processing','studio','waiting',1790000031000,9,NULL,NULL,NULL,9,4,0,0,NULL,'processing','video',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'tuesday','{"post": 7}','https://cms.example/done?id=7',1790000000001,1790000000101,1790000021000,1790000009000,1790000021000,NULL,1500,NULL);
INSERT INTO watches VALUES(5,'ast_leased','default','waiting',1790000030000,3,'host-7-abcdefgh',1790000050000,NULL,2,0,2,0,1790000015000,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'404 Not Found',NULL,NULL,NULL,1790000000002,1790000000102,1790000020000,NULL,NULL,NULL,NULL,40);
INSERT INTO watches VALUES(6,'ast_ünïcode/🎬 "quoted''','default','settled',NULL,17,NULL,NULL,NULL,17,0,0,0,NULL,'active','video','https://cdn.example/a?b=c&d=%20',1920,1080,30,720,NULL,NULL,'tuesday',NULL,NULL,1790000000003,1790000000103,1790000060000,1790000009000,1790000050000,1790000060000,NULL,NULL);
INSERT INTO watches VALUES(7,'ast_rejected','default','abandoned',NULL,0,NULL,NULL,NULL,3,0,0,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'rejected','422: no such asset',NULL,NULL,NULL,1790000000004,NULL,NULL,NULL,NULL,1790000007000,NULL,NULL);
INSERT INTO watches VALUES(8,'ast_cancelled','default','cancelled',NULL,0,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'monday',NULL,NULL,1789000000000,NULL,NULL,NULL,NULL,1789000005000,NULL,NULL);
CREATE TABLE events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL,
    watch_id   INTEGER REFERENCES watches (id) ON DELETE CASCADE,
    type       TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO events VALUES(1,'evt_p4',4,'asset.processing',X'7b2274797065223a2261737365742e70726f63657373696e67227d',1790000009000);
INSERT INTO events VALUES(2,'evt_a6',6,'asset.active',X'7b2274797065223a2261737365742e616374697665227d',1790000060000);
INSERT INTO events VALUES(3,'evt_r7',7,'watch.abandoned',X'7b2274797065223a2277617463682e6162616e646f6e6564227d',1790000007000);
INSERT INTO events VALUES(4,'evt_paused',NULL,'account.paused',X'7b2274797065223a226163636f756e742e706175736564227d',1790000003000);
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
    finished_at INTEGER, body BLOB,
    UNIQUE (event_seq, hook),
    CHECK ((state = 'waiting') = (due_at IS NOT NULL)),
    CHECK ((state IN ('delivered', 'dead')) = (finished_at IS NOT NULL)),
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (state = 'waiting' OR lease_owner IS NULL)
) STRICT;
INSERT INTO deliveries VALUES(1,1,'cms',4,'dead',NULL,2,NULL,NULL,2,2,'superseded: the asset has ended since',1790000009000,1790000030000,NULL);
INSERT INTO deliveries VALUES(2,2,'cms',6,'waiting',1790000090000,2,NULL,NULL,2,2,'503',1790000060000,NULL,NULL);
INSERT INTO deliveries VALUES(3,2,'publish',6,'delivered',NULL,1,NULL,NULL,1,0,NULL,1790000060000,1790000061000,NULL);
INSERT INTO deliveries VALUES(4,3,'cms',7,'held',NULL,0,NULL,NULL,0,0,'the configuration names no hook of this name',1790000007000,NULL,X'7b226869223a317d');
INSERT INTO deliveries VALUES(5,4,'cms',NULL,'delivered',NULL,1,NULL,NULL,1,0,NULL,1790000003000,1790000003500,NULL);
INSERT INTO deliveries VALUES(6,3,'publish',7,'waiting',1790000007000,1,'host-7-abcdefgh',1790000095000,1,0,NULL,1790000007000,NULL,NULL);
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
INSERT INTO attempts VALUES(1,1,1,'host-7-abcdefgh',1790000009100,1790000009200,'failed',503,'503 Service Unavailable',X'6c61746572',NULL);
INSERT INTO attempts VALUES(2,1,2,'host-7-abcdefgh',1790000014100,1790000014200,'unknown',NULL,'its sender is gone',NULL,NULL);
INSERT INTO attempts VALUES(3,2,1,'host-7-abcdefgh',1790000060100,1790000060200,'failed',503,'503',NULL,NULL);
INSERT INTO attempts VALUES(4,2,2,'host-7-abcdefgh',1790000065100,1790000065200,'interrupted',NULL,NULL,NULL,NULL);
INSERT INTO attempts VALUES(5,3,1,'host-7-abcdefgh',1790000060100,1790000061000,'delivered',0,NULL,X'6f6b0a',X'ff00');
INSERT INTO attempts VALUES(6,5,1,'host-7-abcdefgh',1790000003100,1790000003500,'delivered',204,NULL,NULL,NULL);
INSERT INTO attempts VALUES(7,6,1,'host-7-abcdefgh',1790000035000,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE daemons (
    owner        TEXT PRIMARY KEY,
    pid          INTEGER NOT NULL,
    host         TEXT    NOT NULL,
    started_at   INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL
) STRICT;
INSERT INTO daemons VALUES('host-7-abcdefgh',7,'host',1790000000000,1790000062000);
CREATE TABLE IF NOT EXISTS "accounts" (
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
INSERT INTO accounts VALUES('default',NULL,NULL,NULL,NULL,NULL,NULL,1500);
INSERT INTO accounts VALUES('studio','unpaid',1790000003000,1790000063000,'402 Payment Required',2.5,1790000099000,40);
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
INSERT INTO hooks VALUES('publish',1790000070000,'it moves',NULL,2,1790000060000,NULL,NULL,'503');
INSERT INTO hooks VALUES('callback:https://cms.example',NULL,NULL,1790000080000,7,1790000060500,1790000085000,1790000060100,'refused');
CREATE TABLE batches (
    name       TEXT PRIMARY KEY
        CONSTRAINT "a batch's name has 1 to 128 characters" CHECK (length(name) BETWEEN 1 AND 128),
    created_at INTEGER NOT NULL,
    closed_at  INTEGER,
    settled_at INTEGER,
    CHECK (settled_at IS NULL OR closed_at IS NOT NULL)
) STRICT;
INSERT INTO batches VALUES('monday',1789000000000,1789000006000,1789000006000);
INSERT INTO batches VALUES('tuesday',1790000000001,NULL,NULL);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('watches',9);
INSERT INTO sqlite_sequence VALUES('events',4);
INSERT INTO sqlite_sequence VALUES('deliveries',6);
INSERT INTO sqlite_sequence VALUES('attempts',7);
CREATE UNIQUE INDEX watches_waiting ON watches (account, asset_id) WHERE state = 'waiting';
CREATE INDEX watches_due ON watches (account, due_at) WHERE state = 'waiting' AND lease_until IS NULL;
CREATE INDEX watches_leased ON watches (account, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX watches_asset ON watches (asset_id);
CREATE INDEX watches_batch ON watches (batch) WHERE batch IS NOT NULL;
CREATE UNIQUE INDEX events_watch ON events (watch_id, type);
CREATE INDEX deliveries_leased ON deliveries (hook, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX deliveries_watch ON deliveries (watch_id, hook);
CREATE TRIGGER watches_due_at_once AFTER INSERT ON watches WHEN NEW.due_at = 0
BEGIN
    UPDATE watches SET due_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) WHERE id = NEW.id;
END;
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
CREATE INDEX deliveries_first ON deliveries (hook, due_at)
    WHERE state = 'waiting' AND lease_until IS NULL AND attempts = 0;
CREATE INDEX deliveries_again ON deliveries (hook, due_at)
    WHERE state = 'waiting' AND lease_until IS NULL AND attempts > 0;
CREATE INDEX attempts_unfinished ON attempts (owner) WHERE outcome IS NULL;
CREATE INDEX deliveries_undelivered ON deliveries (hook, state) WHERE state IN ('dead', 'held');
CREATE INDEX deliveries_dead ON deliveries (hook) WHERE state = 'dead';
COMMIT;
