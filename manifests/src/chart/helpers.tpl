{{- /* The values, every key of them present: what is left out or null has its default. JSON. */ -}}
{{- define "mesh.values" -}}
{{- $values := include "mesh.filled" (dict "own" .Values "default" (include "mesh.defaults" . | fromJson)) -}}
{{- $proxy := ($values | fromJson).proxy -}}
{{- range $key := list "skip_inbound_ports" "skip_outbound_ports" "opaque_ports" -}}
{{- range $item := splitList "," (get $proxy $key | nospace) -}}
{{- if $item -}}
{{- $ends := splitList "-" $item -}}
{{- if or (gt (atoi (first $ends)) (atoi (last $ends))) (gt (atoi (last $ends)) 65535) -}}
{{- fail (printf "proxy.%s: `%s` is not a port (1-65535) or a range of ports like 8000-8010" $key $item) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $values -}}
{{- end -}}

{{- define "mesh.filled" -}}
{{- $filled := dict -}}
{{- range $key, $default := .default -}}
{{- $own := index $.own $key -}}
{{- if kindIs "map" $default -}}
{{- $below := include "mesh.filled" (dict "own" ($own | default dict) "default" $default) | fromJson -}}
{{- $_ := set $filled $key $below -}}
{{- else if kindIs "invalid" $own -}}
{{- $_ := set $filled $key $default -}}
{{- else -}}
{{- $_ := set $filled $key $own -}}
{{- end -}}
{{- end -}}
{{- $filled | toJson -}}
{{- end -}}

{{- /* The values that differ from the defaults, without anything secret: what a later upgrade starts from. */ -}}
{{- define "mesh.overrides" -}}
{{- $own := omit . "identity" -}}
{{- $_ := set $own "identity" (dict "existing_secret" .identity.existing_secret) -}}
{{- include "mesh.difference" (dict "own" $own "default" (include "mesh.defaults" . | fromJson)) | fromJson | toYaml }}
{{ end -}}

{{- define "mesh.difference" -}}
{{- $differing := dict -}}
{{- range $key, $default := .default -}}
{{- $own := index $.own $key -}}
{{- if kindIs "map" $default -}}
{{- $below := include "mesh.difference" (dict "own" $own "default" $default) | fromJson -}}
{{- if $below -}}
{{- $_ := set $differing $key $below -}}
{{- end -}}
{{- else if ne (toJson $own) (toJson $default) -}}
{{- $_ := set $differing $key $own -}}
{{- end -}}
{{- end -}}
{{- $differing | toJson -}}
{{- end -}}

{{- /* Two meshes in one cluster must not overwrite each other's rights. */ -}}
{{- define "mesh.clusterName" -}}
{{- if eq .system_namespace "mesh-system" }}mesh-control{{ else }}mesh-control-{{ .system_namespace }}{{ end -}}
{{- end -}}

{{- define "mesh.pem" -}}
{{- . | replace "\r\n" "\n" | trim }}
{{ end -}}

{{- define "mesh.anchors" -}}
{{- required "identity.trust_anchors_pem is missing. Make a certificate authority with `meshctl install --new-identity > identity.yaml`, keep the file secret, and give it to helm with `-f identity.yaml`; or, if the Secret mesh-identity-issuer comes from elsewhere, set identity.existing_secret and give the anchors alone" .identity.trust_anchors_pem | include "mesh.pem" -}}
{{- end -}}

{{- define "mesh.issuerCertificate" -}}
{{- required "identity.issuer_certificate_pem is missing. Make a certificate authority with `meshctl install --new-identity > identity.yaml`, keep the file secret, and give it to helm with `-f identity.yaml`; or, if the Secret mesh-identity-issuer comes from elsewhere, set identity.existing_secret and give the anchors alone" .identity.issuer_certificate_pem | include "mesh.pem" -}}
{{- end -}}

{{- define "mesh.issuerKey" -}}
{{- required "identity.issuer_key_pem is missing. Make a certificate authority with `meshctl install --new-identity > identity.yaml`, keep the file secret, and give it to helm with `-f identity.yaml`; or, if the Secret mesh-identity-issuer comes from elsewhere, set identity.existing_secret and give the anchors alone" .identity.issuer_key_pem | include "mesh.pem" -}}
{{- end -}}

{{- /* References to Secrets, JSON. */ -}}
{{- define "mesh.pullSecrets" -}}
[
{{- range $index, $name := .image_pull_secrets -}}
{{- if $index }},{{ end }}{{ dict "name" $name | toJson }}
{{- end -}}
]
{{- end -}}

{{- /* `resources` of a container, without what is not set, JSON. */ -}}
{{- define "mesh.resources" -}}
{{- $resources := dict -}}
{{- range $group, $key := dict "requests" "request" "limits" "limit" -}}
{{- $amounts := dict -}}
{{- range $what := list "cpu" "memory" -}}
{{- with index $ (printf "%s_%s" $what $key) -}}
{{- $_ := set $amounts $what . -}}
{{- end -}}
{{- end -}}
{{- if $amounts -}}
{{- $_ := set $resources $group $amounts -}}
{{- end -}}
{{- end -}}
{{- $resources | toJson -}}
{{- end -}}
