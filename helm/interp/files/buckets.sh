#!/bin/sh
# Makes the buckets, opens the two that Neuronpedia reads without credentials, writes the five configuration objects
# that its import asks for, and proves all of it. Running it again changes nothing.
set -eu

echo "waiting for $AWS_ENDPOINT_URL_S3"
tries=0
until aws s3api list-buckets >/dev/null 2>/tmp/last-error; do
  tries=$((tries + 1))
  if [ "$tries" -ge 60 ]; then cat /tmp/last-error >&2; exit 1; fi
  sleep 5
done

make_bucket() {
  aws s3api head-bucket --bucket "$1" >/dev/null 2>&1 || aws s3api create-bucket --bucket "$1" >/dev/null
  echo "bucket $1 is there"
}

make_bucket "$ARTIFACTS_BUCKET"
if [ "$NEURONPEDIA" = true ]; then
  make_bucket neuronpedia-datasets
  make_bucket neuronpedia-attrib
  for bucket in neuronpedia-datasets neuronpedia-attrib; do
    aws s3api put-bucket-policy --bucket "$bucket" --policy "file:///scripts/$bucket.policy.json"
  done
  # The page fetches graphs from another origin than its own, and a browser uploads them there.
  aws s3api put-bucket-cors --bucket neuronpedia-attrib --cors-configuration file:///scripts/neuronpedia-attrib.cors.json
  # An import fails when one of these is missing; an empty one is enough. What somebody has written stays.
  : >/tmp/empty
  for name in explanation_model_type explanation_type explanation_score_model explanation_score_type eval_type; do
    key="v1/config/$name.jsonl"
    aws s3api head-object --bucket neuronpedia-datasets --key "$key" >/dev/null 2>&1 ||
      aws s3api put-object --bucket neuronpedia-datasets --key "$key" --body /tmp/empty >/dev/null
  done
  aws s3api list-objects-v2 --no-sign-request --bucket neuronpedia-datasets --prefix v1/config/ >/dev/null
  aws s3api put-object --bucket neuronpedia-attrib --key .interp-check --body /tmp/empty >/dev/null
  aws s3api head-object --no-sign-request --bucket neuronpedia-attrib --key .interp-check >/dev/null
  echo "neuronpedia-datasets and neuronpedia-attrib can be read without credentials"
fi
if aws s3api list-objects-v2 --no-sign-request --bucket "$ARTIFACTS_BUCKET" --max-keys 1 >/dev/null 2>&1; then
  echo "$ARTIFACTS_BUCKET can be read by anyone: it must be private" >&2
  exit 1
fi
echo "$ARTIFACTS_BUCKET is private"
