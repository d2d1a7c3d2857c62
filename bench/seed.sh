#!/bin/sh
# The polling script that devwatch is compared with: test two paths every ten seconds and patch the Node's capacity with curl.
# Usage: seed.sh SERVER CA_FILE TOKEN_FILE NODE [PATH0 PATH1 [SECONDS]]
set -u
server=$1 ca=$2 token=$(cat "$3") node=$4 path0=${5:-/dev/ttyACM0} path1=${6:-/dev/ttyUSB0} period=${7:-10}

count() {
    if [ -e "$1" ]; then echo 1; else echo 0; fi
}

while true; do
    curl --silent --output /dev/null --cacert "$ca" --request PATCH \
        --header "Authorization: Bearer $token" --header "Content-Type: application/strategic-merge-patch+json" \
        --data "{\"status\":{\"capacity\":{\"example.com/acm\":\"$(count "$path0")\",\"example.com/usb\":\"$(count "$path1")\"}}}" \
        "$server/api/v1/nodes/$node/status"
    sleep "$period"
done
