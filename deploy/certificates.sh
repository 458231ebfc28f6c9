#!/bin/sh
# Makes an authority of your own and certificates for a server and a client, to try TLS with:
#
#   sh deploy/certificates.sh FOLDER [NAME ...]     NAME: how clients call the server; localhost and 127.0.0.1 by default
#
# FOLDER gets ca.pem (for clients: --tls-ca), server.pem and server.key (tls_cert, tls_key), client.pem and client.key (for
# clients of a server with tls_client_ca). They are valid for a year. What is there already is left as it is.
set -eu
umask 077
folder=$1
shift
[ $# -gt 0 ] || set -- localhost 127.0.0.1
[ ! -e "$folder/server.pem" ] || exit 0
mkdir -p "$folder"
work=$(mktemp -d "$folder/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$work/$1.key"; }

issue() { # NAME SUBJECT EXTENSIONS
  key "$1"
  openssl req -new -key "$work/$1.key" -subj "/CN=$2" -out "$work/$1.csr"
  printf '%s\n' "$3" basicConstraints=CA:FALSE keyUsage=critical,digitalSignature subjectKeyIdentifier=hash \
    authorityKeyIdentifier=keyid > "$work/$1.extensions"
  openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 365 -sha256 \
    -extfile "$work/$1.extensions" -out "$work/$1.pem" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
}

names=
for name in "$@"; do
  case $name in
    *:* | *[0-9].*[0-9].*[0-9].*[0-9]) names="$names,IP:$name" ;;
    *) names="$names,DNS:$name" ;;
  esac
done

key ca
openssl req -x509 -new -key "$work/ca.key" -subj "/CN=twinfer's authority" -days 365 -sha256 \
  -addext keyUsage=critical,keyCertSign,cRLSign -out "$work/ca.pem"
issue server "$1" "subjectAltName=${names#,}
extendedKeyUsage=serverAuth"
issue client client extendedKeyUsage=clientAuth
chmod 644 "$work"/*.pem
for name in ca.key ca.pem client.key client.pem server.key server.pem; do mv "$work/$name" "$folder/$name"; done
