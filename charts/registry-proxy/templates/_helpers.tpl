{{- define "registry-proxy.name" -}}
{{- if contains "registry-proxy" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-registry-proxy" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "registry-proxy.selector" -}}
app.kubernetes.io/name: registry-proxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "registry-proxy.labels" -}}
{{ include "registry-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The configuration file: what values say, and the paths of the volumes over it. */ -}}
{{- define "registry-proxy.config" -}}
{{- if and (gt (int .Values.replicaCount) 1) (not .Values.store.existingSecret) }}
{{- fail "replicaCount above 1 needs a Redis that all nodes share: set store.existingSecret" }}
{{- end }}
{{- $set := dict "listen" "0.0.0.0:5000" "admin_listen" "0.0.0.0:5080" }}
{{- $_ := set $set "store" "sqlite:////var/lib/registry-proxy/registry-proxy.db" }}
{{- $_ := set $set "cache" (dict "path" "/var/cache/registry-proxy/blobs") }}
{{- $_ := set $set "auth" (dict "signing_key_file" "/var/lib/registry-proxy/token-key.pem") }}
{{- $_ := set $set "audit" (dict "path" "/var/log/registry-proxy/events") }}
{{- with .Values.tls.existingSecret }}
{{- $_ := set $set "tls" (dict "cert_file" "/etc/registry-proxy/tls/tls.crt" "key_file" "/etc/registry-proxy/tls/tls.key") }}
{{- end }}
{{- with .Values.adminTls.existingSecret }}
{{- $_ := set $set "admin_tls" (dict "cert_file" "/etc/registry-proxy/admin-tls/tls.crt" "key_file" "/etc/registry-proxy/admin-tls/tls.key") }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.config.public_url) }}
{{- $_ := set $set "public_url" (printf "https://%s" (required "ingress.host is needed" .Values.ingress.host)) }}
{{- end }}
{{- $hosts := list (printf "%s-admin" (include "registry-proxy.name" .)) (printf "%s-admin.%s.svc" (include "registry-proxy.name" .) .Release.Namespace) }}
{{- $_ := set $set "admin_hosts" (concat $hosts (.Values.config.admin_hosts | default list)) }}
{{- mergeOverwrite (deepCopy .Values.config) $set | toYaml }}
{{- end }}
