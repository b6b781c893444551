-- One row: which history this is, and how far it has come. Who writes takes it FOR UPDATE, so that revisions are
-- gap-free and in commit order.
CREATE TABLE meridian_head (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    id        text    NOT NULL,           -- of the store
    plane     text    NOT NULL DEFAULT '', -- whose state this is
    revision  bigint  NOT NULL,
    compacted bigint  NOT NULL,
    commit_id uuid    NOT NULL            -- of the newest commit
);
INSERT INTO meridian_head (id, revision, compacted, commit_id) VALUES (gen_random_uuid()::text, 0, 0, gen_random_uuid());

-- What is stored of each key: a record, or the memory of its deletion. The key may be longer than an index takes, so its
-- digest stands for it.
CREATE TABLE meridian_entries (
    digest   bytea   PRIMARY KEY, -- SHA-256 of key
    revision bigint  NOT NULL,    -- of the last change
    deleted  boolean NOT NULL,
    key      bytea   NOT NULL,    -- type, mesh, name, joined by zero bytes
    value    bytea   NOT NULL
);
CREATE INDEX meridian_entries_revision ON meridian_entries (revision, digest);

-- The newest commits: which groups of batches make up this history.
CREATE TABLE meridian_commits (
    revision  bigint PRIMARY KEY, -- of the group's last batch
    commit_id uuid   NOT NULL
);
INSERT INTO meridian_commits SELECT revision, commit_id FROM meridian_head;

CREATE TABLE meridian_leases (
    name    text        PRIMARY KEY,
    holder  text        NOT NULL, -- empty: free
    epoch   bigint      NOT NULL,
    expires timestamptz NOT NULL
);

-- For people; the program does not use it.
CREATE VIEW meridian_resources AS
SELECT split_part(encode(key, 'escape'), '\000', 1) AS type,
       split_part(encode(key, 'escape'), '\000', 2) AS mesh,
       split_part(encode(key, 'escape'), '\000', 3) AS name,
       revision, length(value) AS bytes
FROM meridian_entries WHERE NOT deleted;
