#!/bin/sh
# One dump of the whole database, named when it is complete; the oldest beyond $KEEP go.
set -eu

name="$PGDATABASE-$(date -u +%Y%m%dT%H%M%SZ).dump"
pg_dump --format=custom --no-owner --file="$TARGET/.$name.part"
pg_restore --list "$TARGET/.$name.part" >/dev/null
mv "$TARGET/.$name.part" "$TARGET/$name"
echo "$name: $(wc -c <"$TARGET/$name") bytes"
ls -1r "$TARGET" | grep '\.dump$' | tail -n "+$((KEEP + 1))" | while read -r old; do
  rm -- "$TARGET/$old"
  echo "removed $old"
done
