-- +goose Up
CREATE TABLE deployments (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  kind    TEXT NOT NULL,             -- push rollback
  ref     TEXT NOT NULL DEFAULT '',  -- the image as the operator named it
  image   TEXT NOT NULL DEFAULT '',  -- digest of its manifest
  command TEXT NOT NULL,             -- as it was typed
  by_whom TEXT NOT NULL,
  begun   INTEGER NOT NULL,
  ended   INTEGER NOT NULL DEFAULT 0 -- 0: it is under way, or whoever ran it was killed
);

CREATE TABLE deployment_nodes (
  deployment INTEGER NOT NULL REFERENCES deployments (id),
  node       TEXT NOT NULL,
  place      INTEGER NOT NULL,             -- in the order in which they are begun
  state      TEXT NOT NULL,                -- waiting running done unchanged reverted failed unreachable interrupted
  was        INTEGER NOT NULL DEFAULT 0,   -- the generation before
  generation INTEGER NOT NULL DEFAULT 0,   -- what it is at, as far as is known
  changes    INTEGER NOT NULL DEFAULT 0,
  sent       INTEGER NOT NULL DEFAULT 0,   -- bytes
  reason     TEXT NOT NULL DEFAULT '',     -- of what is not done
  health     TEXT NOT NULL DEFAULT '[]',   -- JSON: what the checks said
  changed    INTEGER NOT NULL,
  PRIMARY KEY (deployment, node)
);
CREATE INDEX deployment_nodes_node ON deployment_nodes (node, deployment);

ALTER TABLE generations ADD COLUMN reason TEXT NOT NULL DEFAULT ''; -- of a revert

-- +goose Down
ALTER TABLE generations DROP COLUMN reason;
DROP TABLE deployment_nodes; DROP TABLE deployments;
