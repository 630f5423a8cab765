-- What a fresh database of Neuronpedia needs and its migrations do not write. Running it again changes nothing, but for
-- an API key that has become another one. Values come from the environment: a command line would show them.
\set ON_ERROR_STOP on
\getenv api_key NEURONPEDIA_API_KEY
\getenv creator DEFAULT_CREATOR_USER_ID
\getenv searcher INFERENCE_ACTIVATION_USER_ID
\getenv release WANTED_RELEASE

CREATE EXTENSION IF NOT EXISTS vector;
-- Loads the library: its settings are unknown before, and only a superuser may set what is unknown.
SELECT '[1]'::vector;
-- Neuronpedia's own seed names the database `postgres`; this one takes the one that it is in.
SELECT format('ALTER DATABASE %I SET hnsw.iterative_scan = relaxed_order', current_database()) \gexec
SELECT format('ALTER DATABASE %I SET hnsw.ef_search = 250', current_database()) \gexec

BEGIN;

INSERT INTO "User" (id, name, bot, admin, "emailUnsubscribeCode", "emailNewsletterNotification", "emailUnsubscribeAll")
VALUES
  (:'creator', 'bot', true, true, md5(random()::text), false, true),
  (:'searcher', 'inferenceactivation', true, false, md5(random()::text), false, true)
ON CONFLICT DO NOTHING;

-- With sign-in off an API key is a row, and nothing else makes one.
INSERT INTO "UserSecret" (id, username, type, value, "updatedAt")
SELECT 'interp-push', name, 'NEURONPEDIA', :'api_key', now() FROM "User" WHERE id = :'creator'
ON CONFLICT (username, type) DO UPDATE SET value = excluded.value, "updatedAt" = now()
WHERE "UserSecret".value IS DISTINCT FROM excluded.value;

CREATE SCHEMA IF NOT EXISTS interp;
CREATE TABLE IF NOT EXISTS interp.release (hash text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
INSERT INTO interp.release (hash) VALUES (:'release') ON CONFLICT (hash) DO UPDATE SET at = now();

COMMIT;
