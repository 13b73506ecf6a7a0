-- +goose Up
CREATE TABLE leases (
  ip       TEXT PRIMARY KEY,
  mac      TEXT NOT NULL,
  state    TEXT NOT NULL,
  hostname TEXT NOT NULL DEFAULT '',
  iface    TEXT NOT NULL DEFAULT '',
  expires  INTEGER NOT NULL          -- Unix seconds
);

CREATE TABLE installs (
  node     TEXT PRIMARY KEY,
  state    TEXT NOT NULL,            -- armed claimed writing installed failed
  ref      TEXT NOT NULL,            -- the image as the operator named it
  image    TEXT NOT NULL,            -- digest of its manifest
  netboot  TEXT NOT NULL,            -- key of the kernel and initramfs that install it
  attempt  INTEGER NOT NULL DEFAULT 0,
  nonce    TEXT NOT NULL DEFAULT '', -- of the current boot attempt
  client   TEXT NOT NULL DEFAULT '', -- the installer that claimed this attempt
  token    TEXT NOT NULL DEFAULT '', -- its session
  ip       TEXT NOT NULL DEFAULT '',
  task     TEXT NOT NULL DEFAULT '',
  done     INTEGER NOT NULL DEFAULT 0,
  total    INTEGER NOT NULL DEFAULT 0,
  rate     INTEGER NOT NULL DEFAULT 0, -- bytes a second, lately
  dirty    INTEGER NOT NULL DEFAULT 0, -- 1: an attempt since the arming has begun to write the disk
  reason   TEXT NOT NULL DEFAULT '',
  by_whom  TEXT NOT NULL DEFAULT '',
  changed  INTEGER NOT NULL          -- Unix nanoseconds, as all times below
);

CREATE TABLE events (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  time   INTEGER NOT NULL,
  node   TEXT NOT NULL DEFAULT '',
  mac    TEXT NOT NULL DEFAULT '',
  stage  TEXT NOT NULL,
  detail TEXT NOT NULL DEFAULT ''
);
CREATE INDEX events_node ON events (node, id);
CREATE INDEX events_mac ON events (mac, id);

CREATE TABLE machines (               -- seen on the wire, known or not
  mac      TEXT PRIMARY KEY,
  node     TEXT NOT NULL DEFAULT '',
  uuid     TEXT NOT NULL DEFAULT '',
  serial   TEXT NOT NULL DEFAULT '',
  firmware TEXT NOT NULL DEFAULT '',
  ip       TEXT NOT NULL DEFAULT '',
  first    INTEGER NOT NULL,
  last     INTEGER NOT NULL
);

CREATE TABLE hostkeys (
  node    TEXT NOT NULL,
  type    TEXT NOT NULL,              -- ed25519, rsa, ecdsa
  private TEXT NOT NULL,
  public  TEXT NOT NULL,
  PRIMARY KEY (node, type)
);

CREATE TABLE generations (
  node       TEXT NOT NULL,
  number     INTEGER NOT NULL,
  ref        TEXT NOT NULL,
  image      TEXT NOT NULL,
  overlay    TEXT NOT NULL DEFAULT '',
  mode       TEXT NOT NULL,
  kind       TEXT NOT NULL,           -- install push rollback
  by_whom    TEXT NOT NULL DEFAULT '',
  time       INTEGER NOT NULL,
  deployment INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (node, number)
);

CREATE TABLE facts (
  node  TEXT NOT NULL,
  key   TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (node, key)
);

-- +goose Down
DROP TABLE facts; DROP TABLE generations; DROP TABLE hostkeys; DROP TABLE machines; DROP TABLE events; DROP TABLE installs; DROP TABLE leases;
