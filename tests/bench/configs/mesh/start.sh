# Issues a certificate that names a mesh identity (the harness's own name DNS hosts), then becomes the proxy.
set -eu
cd "@DIR@"
printf 'subjectAltName=URI:spiffe://cluster.local/ns/bench/sa/%s\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n' "$1" > ext
openssl x509 -req -in "@CERTS@/$1.csr" -CA "@CERTS@/ca.crt" -CAkey "@CERTS@/ca.key" -set_serial "$(date +%s)" \
  -days 30 -extfile ext -out proxy.crt 2> openssl.log
exec "@MESH_PROXY_BIN@" --config proxy.yaml
