-- +goose Up
ALTER TABLE deployment_nodes ADD COLUMN sides TEXT NOT NULL DEFAULT ''; -- what a node with two sides was at when it had ended

-- +goose Down
ALTER TABLE deployment_nodes DROP COLUMN sides;
