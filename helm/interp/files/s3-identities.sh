#!/bin/sh
# Writes who may do what in SeaweedFS. It reads one file, and keys come from three Secrets.
set -eu

for key in "$ADMIN_KEY" "$ADMIN_SECRET" "$WEBAPP_KEY" "$WEBAPP_SECRET" "$WORKER_KEY" "$WORKER_SECRET"; do
  case "$key" in
  *[!A-Za-z0-9/+=._~-]* | "")
    echo "an access key may have letters, digits and / + = . _ ~ - only, and may not be empty" >&2
    exit 1
    ;;
  esac
done
umask 077
cat >"$TARGET" <<END
{"identities": [
  {"name": "admin", "credentials": [{"accessKey": "$ADMIN_KEY", "secretKey": "$ADMIN_SECRET"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "webapp", "credentials": [{"accessKey": "$WEBAPP_KEY", "secretKey": "$WEBAPP_SECRET"}],
   "actions": ["Read:neuronpedia-attrib", "Write:neuronpedia-attrib", "List:neuronpedia-attrib",
               "Read:neuronpedia-datasets", "List:neuronpedia-datasets"]},
  {"name": "worker", "credentials": [{"accessKey": "$WORKER_KEY", "secretKey": "$WORKER_SECRET"}],
   "actions": ["Read:$ARTIFACTS_BUCKET", "Write:$ARTIFACTS_BUCKET", "List:$ARTIFACTS_BUCKET", "Tagging:$ARTIFACTS_BUCKET",
               "Read:neuronpedia-datasets", "Write:neuronpedia-datasets", "List:neuronpedia-datasets"]},
  {"name": "anonymous",
   "actions": ["Read:neuronpedia-datasets", "List:neuronpedia-datasets", "Read:neuronpedia-attrib"]}
]}
END
