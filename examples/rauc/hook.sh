#!/bin/sh
# RAUC calls this in place of writing the slot: `hook.sh slot-install` with the slot and the image in its environment.
# What fails here fails the installation, and the release that answered goes on.
set -eu

store=${SDRPN_STORE:-/var/lib/sdrpn}
key=${SDRPN_KEY:-/etc/sdrpn/release.pub}
sdrpn=${SDRPN:-/opt/sdrpn/bin/sdrpn}

case "$1:${RAUC_SLOT_CLASS:-}" in
slot-install:model)
    # Signature, versions, digests, memory and the trial are checked there; if the service does not become ready, the
    # device is back at the release before when this returns.
    exec "$sdrpn" release install "$RAUC_IMAGE_NAME" --store "$store" --require-signed "$key" \
        --restart "${SDRPN_RESTART:-systemctl restart sdrpn}" \
        --ready-url "${SDRPN_READY_URL:-http://127.0.0.1:8000/readyz}"
    ;;
*)
    echo "hook.sh: $1 of ${RAUC_SLOT_CLASS:-no class} is not handled here" >&2
    exit 1
    ;;
esac
