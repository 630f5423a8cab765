#!/bin/sh
# Sends the dump that was just made to S3; how long it is kept is the bucket's own rule.
set -eu

aws s3 cp --no-progress --recursive --exclude '*' --include '*.dump' "$TARGET" "$DESTINATION"
