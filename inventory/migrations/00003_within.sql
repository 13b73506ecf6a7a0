-- +goose Up
ALTER TABLE generations ADD COLUMN within TEXT NOT NULL DEFAULT ''; -- the path that alone was pushed; '': all

-- +goose Down
ALTER TABLE generations DROP COLUMN within;
