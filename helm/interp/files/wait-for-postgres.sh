#!/bin/sh
# Waits until Postgres takes our password. With WANTED_RELEASE: until the database Job of that release is done.
set -eu

# The password becomes part of a URL, so a character that a URL reads otherwise would only fail much later.
case "$PGPASSWORD" in
*[!A-Za-z0-9._~-]* | "")
  echo "the password of Postgres may have letters, digits and . _ ~ - only: it becomes part of a URL" >&2
  exit 1
  ;;
esac

asked="SELECT 1"
if [ -n "${WANTED_RELEASE:-}" ]; then
  asked="SELECT 1 FROM interp.release WHERE hash = '$WANTED_RELEASE'"
fi
tries=0
until [ "$(psql --no-psqlrc --tuples-only --no-align --command "$asked" 2>/tmp/last-error)" = 1 ]; do
  tries=$((tries + 1))
  if [ "$tries" -ge "${TRIES:-120}" ]; then
    cat /tmp/last-error >&2
    echo "gave up waiting for $PGHOST:$PGPORT (asked: $asked)" >&2
    exit 1
  fi
  [ $((tries % 12)) -ne 1 ] || echo "waiting for $PGHOST:$PGPORT (asked: $asked)"
  sleep "${PAUSE:-5}"
done
