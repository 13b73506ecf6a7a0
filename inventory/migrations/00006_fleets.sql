-- +goose Up
ALTER TABLE deployments ADD COLUMN plan    TEXT NOT NULL DEFAULT '';   -- JSON: what is asked of each node, and how they are gone about
ALTER TABLE deployments ADD COLUMN undoes  INTEGER NOT NULL DEFAULT 0; -- the deployment that it takes back
ALTER TABLE deployments ADD COLUMN holder  TEXT NOT NULL DEFAULT '';   -- what the process that works at it has locked
ALTER TABLE deployments ADD COLUMN stopped TEXT NOT NULL DEFAULT '';   -- why it ended before all nodes were begun

ALTER TABLE deployment_nodes ADD COLUMN wave   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deployment_nodes ADD COLUMN target INTEGER NOT NULL DEFAULT 0; -- of a rollback: the generation to go to

CREATE INDEX deployments_open ON deployments (id) WHERE ended = 0;
CREATE INDEX leases_mac ON leases (mac);

-- +goose Down
DROP INDEX leases_mac; DROP INDEX deployments_open;
ALTER TABLE deployment_nodes DROP COLUMN target; ALTER TABLE deployment_nodes DROP COLUMN wave;
ALTER TABLE deployments DROP COLUMN stopped; ALTER TABLE deployments DROP COLUMN holder; ALTER TABLE deployments DROP COLUMN undoes; ALTER TABLE deployments DROP COLUMN plan;
