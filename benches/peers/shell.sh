#!/usr/bin/env bash
# A loop of curl and jq: `shell.sh API HOOK IDS RESULTS`. A pass over what is not ready, eight at a time; then 5 s of sleep.
#
# Does: timeouts, what is written to RESULTS is not asked again after a restart, any status but the two is final.
# Does not: back off, heed Retry-After, tell again when a hook is down (beyond curl's retries) or when it was killed between
# writing and telling, sync what it writes, sign what it tells.
set -u
export API=$1 HOOK=$2 RESULTS=$4
ids=$3

look() {
    local answer fields status url
    answer=$(curl --silent --fail --max-time 10 --header 'x-api-key: key' "$API/pub/v2/assets/$1") || return 0
    fields=$(jq --raw-output '[.data.status, .data.url // ""] | @tsv' <<<"$answer") || return 0
    IFS=$'\t' read -r status url <<<"$fields"
    case $status in
        '' | pending | processing) return 0 ;;
    esac
    printf '%s\t%s\t%s\n' "$1" "$status" "$url" >>"$RESULTS"
    curl --silent --fail --max-time 10 --retry 5 --output /dev/null \
        --json "{\"data\": {\"asset_id\": \"$1\", \"status\": \"$status\"}}" "$HOOK"
}
export -f look

touch "$RESULTS"
while :; do
    grep --invert-match --line-regexp --fixed-strings --file <(cut --fields 1 "$RESULTS") "$ids" |
        xargs --no-run-if-empty --max-args 1 --max-procs 8 bash -c 'look "$1"' look
    sleep 5
done
