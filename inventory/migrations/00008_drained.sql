-- +goose Up
CREATE TABLE drained (                   -- nodes that are out of service, or were about to be
  node       TEXT PRIMARY KEY,
  deployment INTEGER NOT NULL,           -- that took it out; 0: an operator did, by `ingot drain`
  by_whom    TEXT NOT NULL,
  since      INTEGER NOT NULL,
  why        TEXT NOT NULL DEFAULT ''    -- why it stays so until somebody looks; empty while a deployment is at it
);

-- +goose Down
DROP TABLE drained;
