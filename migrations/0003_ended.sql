-- Ended watches by how they ended and when: for counts of them, for what settled lately, and for what may be pruned. A poll
-- that does not end its watch does not touch it.
CREATE INDEX watches_ended ON watches (state, status, settled_at) WHERE settled_at IS NOT NULL;
