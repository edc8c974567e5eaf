{{/* What several templates need: names, labels, and answers to "is this on?". A helper that answers yes or no gives
     "true" or nothing. Settings may come as text ("True"), as Azure's command line passes them. */}}

{{- define "azureml-fe.selector" -}}
azuremlappname: azureml-fe
{{- end }}

{{- define "azureml-fe.labels" -}}
{{ include "azureml-fe.selector" . }}
app.kubernetes.io/name: azureml-fe
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "azureml-fe.image" -}}
{{- $repository := required "image.repository: where the router's image was pushed, such as <registry>.azurecr.io/azureml-fe" .Values.image.repository -}}
{{ printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{- define "azureml-fe.http" -}}
{{- if eq (lower (toString .Values.allowInsecureConnections)) "true" }}true{{ end }}
{{- end }}

{{- define "azureml-fe.https" -}}
{{- if or .Values.sslSecret .Values.sslCertPemFile }}true{{ end }}
{{- end }}

{{- define "azureml-fe.ha" -}}
{{- if eq (lower (toString .Values.inferenceRouterHA)) "true" }}true{{ end }}
{{- end }}

{{- define "azureml-fe.tlsSecret" -}}
{{ .Values.sslSecret | default "azuremlfessl" }}
{{- end }}

{{- define "azureml-fe.peerSecret" -}}
{{ .Values.peers.existingSecret | default "azureml-fe-peers" }}
{{- end }}

{{/* LoadBalancer, NodePort or ClusterIP, from any case. */}}
{{- define "azureml-fe.serviceType" -}}
{{ get (dict "loadbalancer" "LoadBalancer" "nodeport" "NodePort" "clusterip" "ClusterIP") (lower .Values.inferenceRouterServiceType) }}
{{- end }}

{{/* Whether the router changes its own size. */}}
{{- define "azureml-fe.selfScaling" -}}
{{- $given := get .Values.router "self_scaling_enabled" | toString | lower -}}
{{- if and (ne .Values.clusterPurpose "DevTest") (ne $given "false") }}true{{ end }}
{{- end }}

{{/* Router pods that there are at first, and at least. */}}
{{- define "azureml-fe.leastPods" -}}
{{- $given := get .Values.router "self_scaling_min_pods" -}}
{{- if $given }}{{ $given | int }}{{ else if include "azureml-fe.ha" . }}3{{ else }}1{{ end }}
{{- end }}

{{/* spec.replicas: where the router scales itself, an upgrade leaves the number that it has come to. */}}
{{- define "azureml-fe.replicas" -}}
{{- $least := include "azureml-fe.leastPods" . | int -}}
{{- $replicas := $least -}}
{{- if include "azureml-fe.selfScaling" . -}}
{{- $running := lookup "apps/v1" "Deployment" .Release.Namespace "azureml-fe" -}}
{{- if $running }}{{ $replicas = max $least (dig "spec" "replicas" $least $running | int) }}{{ end -}}
{{- end -}}
{{ $replicas }}
{{- end }}

{{/* What would fail later, or silently, is refused here. */}}
{{- define "azureml-fe.check" -}}
{{- if not (or (include "azureml-fe.http" .) (include "azureml-fe.https" .)) }}
{{- fail "allowInsecureConnections is false and there is no certificate, so the router could not serve: set sslSecret to a Secret with cert.pem and key.pem (or give sslCertPemFile and sslKeyPemFile), or set allowInsecureConnections=true for plain HTTP" }}
{{- end }}
{{- if and .Values.sslSecret (or .Values.sslCertPemFile .Values.sslKeyPemFile) }}
{{- fail "sslSecret and sslCertPemFile/sslKeyPemFile exclude each other: the Secret is either yours or made by the chart" }}
{{- end }}
{{- if ne (empty .Values.sslCertPemFile) (empty .Values.sslKeyPemFile) }}
{{- fail "sslCertPemFile and sslKeyPemFile belong together: give both, with --set-file" }}
{{- end }}
{{- $most := get .Values.router "self_scaling_max_pods" }}
{{- if and $most (lt (int $most) (include "azureml-fe.leastPods" . | int)) }}
{{- fail (printf "router.self_scaling_max_pods=%d is below the least number of pods, %s: raise it, lower router.self_scaling_min_pods, or set inferenceRouterHA=false" (int $most) (include "azureml-fe.leastPods" .)) }}
{{- end }}
{{- if and .Values.peers.tlsSecret (has (toString (get .Values.router "peer_tls")) (list "off" "false")) }}
{{- fail "router.peer_tls=off and peers.tlsSecret exclude each other: a mounted certificate turns TLS between router pods on" }}
{{- end }}
{{- if and .Values.sslClientCaSecret (not (include "azureml-fe.https" .)) }}
{{- fail "sslClientCaSecret needs sslSecret: certificates of clients are asked for by HTTPS only" }}
{{- end }}
{{- if and (eq .Values.internalLoadBalancerProvider "azure") (ne (include "azureml-fe.serviceType" .) "LoadBalancer") }}
{{- fail (printf "internalLoadBalancerProvider=azure needs inferenceRouterServiceType=loadBalancer, not %s" .Values.inferenceRouterServiceType) }}
{{- end }}
{{- end }}

{{/* router.yaml: what `azureml-fe serve` reads. */}}
{{- define "azureml-fe.config" -}}
{{- $derived := dict
    "cluster_purpose" .Values.clusterPurpose
    "shutdown_delay_seconds" .Values.shutdown.delaySeconds
    "drain_seconds" .Values.shutdown.drainSeconds
    "generate_keys" .Values.generateKeys
    "allow_insecure_connections" (eq (include "azureml-fe.http" .) "true")
-}}
{{- $offs := dict -}}
{{- if .Values.namespaces }}{{ $derived = set $derived "namespaces" (join "," .Values.namespaces) }}{{ end -}}
{{- if include "azureml-fe.https" . -}}
{{- $derived = set $derived "tls_cert_file" "/etc/azureml-fe/tls/cert.pem" -}}
{{- $derived = set $derived "tls_key_file" "/etc/azureml-fe/tls/key.pem" -}}
{{- end -}}
{{- if .Values.sslClientCaSecret }}{{ $derived = set $derived "tls_client_ca_file" "/etc/azureml-fe/client-ca/ca.pem" }}{{ end -}}
{{- if .Values.peers.tlsSecret -}}
{{- $derived = set $derived "peer_tls_cert_file" "/etc/azureml-fe/peers-tls/tls.crt" -}}
{{- $derived = set $derived "peer_tls_key_file" "/etc/azureml-fe/peers-tls/tls.key" -}}
{{- $derived = set $derived "peer_tls_ca_file" "/etc/azureml-fe/peers-tls/ca.crt" -}}
{{- end -}}
{{- if include "azureml-fe.selfScaling" . -}}
{{- $derived = set $derived "self_scaling_min_pods" (include "azureml-fe.leastPods" . | int) -}}
{{- end -}}
{{- range $name, $value := .Values.router -}}
{{- /* Helm reads the word `off` as false. */ -}}
{{- if and (kindIs "bool" $value) (has $name (list "peer_tls" "traces")) }}{{ $offs = set $offs $name "off" }}{{ end -}}
{{- end -}}
router:
  {{- mergeOverwrite $derived .Values.router $offs | toYaml | nindent 2 }}
{{- with .Values.tokenIssuers }}
token_issuers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
