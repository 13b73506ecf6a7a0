-- +goose Up
ALTER TABLE generations ADD COLUMN retired INTEGER NOT NULL DEFAULT 0; -- 1: the node does not keep it any more

-- +goose Down
ALTER TABLE generations DROP COLUMN retired;
