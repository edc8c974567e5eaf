{{/* Shared helpers: names, labels, conditions. A condition is "true" or empty. Booleans may be text ("True"), because
     Azure's command line passes them so. */}}

{{/* The name of the objects. By default it does not depend on the release's name: an upgrade never renames a Service. */}}
{{- define "azureml-fe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if not .Values.nameOverride -}}
azureml-fe
{{- else if contains .Values.nameOverride .Release.Name -}}
{{ .Release.Name }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Values.nameOverride }}
{{- end -}}
{{- end }}

{{/* The names of the ConfigMap and of the Secret with the certificate: those of Azure ML for the default name. */}}
{{- define "azureml-fe.configMap" -}}
{{- $name := include "azureml-fe.fullname" . -}}
{{ ternary "azuremlfeconfig" (printf "%s-config" $name) (eq $name "azureml-fe") }}
{{- end }}

{{- define "azureml-fe.ownTlsSecret" -}}
{{- $name := include "azureml-fe.fullname" . -}}
{{ ternary "azuremlfessl" (printf "%s-ssl" $name) (eq $name "azureml-fe") }}
{{- end }}

{{/* Names of objects outside of the release's namespace. No two releases have the same: neither part has a point. */}}
{{- define "azureml-fe.modelRole" -}}
{{ printf "%s-role.%s" (include "azureml-fe.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "azureml-fe.roomRole" -}}
{{ printf "%s-room.%s" (include "azureml-fe.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "azureml-fe.admissionPolicy" -}}
{{ printf "%s-writes.%s" (include "azureml-fe.fullname" .) .Release.Namespace }}
{{- end }}

{{/* True if the release has an admission policy. A rendering without a cluster knows only the version of Kubernetes. */}}
{{- define "azureml-fe.hasAdmissionPolicy" -}}
{{- $apis := .Capabilities.APIVersions -}}
{{- $served := $apis.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}
{{- if not ($apis.Has "v1/Pod") }}{{ $served = semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}{{ end -}}
{{- if and $served (ne (get (.Values.admissionPolicy | default dict) "enabled" | toString) "false") }}true{{ end }}
{{- end }}

{{- define "azureml-fe.selector" -}}
azuremlappname: {{ include "azureml-fe.fullname" . }}
{{- end }}

{{- define "azureml-fe.labels" -}}
{{ include "azureml-fe.selector" . }}
app.kubernetes.io/name: {{ .Values.nameOverride | default "azureml-fe" }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "azureml-fe.image" -}}
{{- $repository := required "image.repository is required: the repository of the router's image, such as <registry>.azurecr.io/azureml-fe" .Values.image.repository -}}
{{- /* --set image.tag=2 is a number. */ -}}
{{- $tag := .Values.image.tag -}}
{{- if not (kindIs "string" $tag) }}{{ $tag = $tag | int64 | toString }}{{ end -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" $repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" $repository ($tag | default .Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{- define "azureml-fe.http" -}}
{{- if eq (lower (toString .Values.allowInsecureConnections)) "true" }}true{{ end }}
{{- end }}

{{- define "azureml-fe.https" -}}
{{- if or .Values.sslSecret .Values.sslCertPemFile }}true{{ end }}
{{- end }}

{{- define "azureml-fe.allNamespaces" -}}
{{- if eq (lower (toString .Values.allNamespaces)) "true" }}true{{ end }}
{{- end }}

{{- define "azureml-fe.ha" -}}
{{- if eq (lower (toString .Values.inferenceRouterHA)) "true" }}true{{ end }}
{{- end }}

{{- define "azureml-fe.tlsSecret" -}}
{{ .Values.sslSecret | default (include "azureml-fe.ownTlsSecret" .) }}
{{- end }}

{{- define "azureml-fe.peerSecret" -}}
{{ .Values.peers.existingSecret | default (printf "%s-peers" (include "azureml-fe.fullname" .)) }}
{{- end }}

{{/* LoadBalancer, NodePort or ClusterIP. */}}
{{- define "azureml-fe.serviceType" -}}
{{ get (dict "loadbalancer" "LoadBalancer" "nodeport" "NodePort" "clusterip" "ClusterIP") (lower .Values.inferenceRouterServiceType) }}
{{- end }}

{{/* True if the router scales itself. */}}
{{- define "azureml-fe.selfScaling" -}}
{{- $enabled := get .Values.router "self_scaling_enabled" | toString | lower -}}
{{- if and (ne .Values.clusterPurpose "DevTest") (ne $enabled "false") }}true{{ end }}
{{- end }}

{{/* The initial and minimum number of router pods. */}}
{{- define "azureml-fe.minPods" -}}
{{- $minPods := get .Values.router "self_scaling_min_pods" -}}
{{- if $minPods }}{{ $minPods | int }}{{ else if include "azureml-fe.ha" . }}3{{ else }}1{{ end }}
{{- end }}

{{/* spec.replicas. If the router scales itself, an upgrade keeps its current number of pods. */}}
{{- define "azureml-fe.replicas" -}}
{{- $minPods := include "azureml-fe.minPods" . | int -}}
{{- $replicas := $minPods -}}
{{- if include "azureml-fe.selfScaling" . -}}
{{- $running := lookup "apps/v1" "Deployment" .Release.Namespace (include "azureml-fe.fullname" .) -}}
{{- if $running }}{{ $replicas = max $minPods (dig "spec" "replicas" $minPods $running | int) }}{{ end -}}
{{- end -}}
{{ $replicas }}
{{- end }}

{{/* Refuse values that would fail later or silently. */}}
{{- define "azureml-fe.check" -}}
{{- $all := include "azureml-fe.allNamespaces" . }}
{{- if not (or .Values.namespaces $all) }}
{{- $upgrade := ternary "This upgrade has changed nothing. The release has served all namespaces if its `namespaces` were empty. " "" .Release.IsUpgrade }}
{{- fail (printf "namespaces is empty. %sList the namespaces whose models the router serves: --set 'namespaces={models,more-models}'. This command finds the namespaces with models: kubectl get deployments --all-namespaces --selector isazuremlapp=true. Or set allNamespaces=true: the router then serves all namespaces, and its account may list all Secrets of the cluster and annotate all pods of models" $upgrade) }}
{{- end }}
{{- if and .Values.namespaces $all }}
{{- fail "namespaces and allNamespaces=true exclude each other: with namespaces, the router serves only these" }}
{{- end }}
{{- $name := include "azureml-fe.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$" $name) }}
{{- fail (printf "the name of the objects, %s, must have at most 53 of a-z, 0-9 and -, and begin with a letter: set fullnameOverride" $name) }}
{{- end }}
{{- if eq $name "azureml-fe-release" }}
{{- fail "the name of the objects must not be azureml-fe-release, which is that of the Leases with the claims on namespaces: set fullnameOverride" }}
{{- end }}
{{- if not (or (include "azureml-fe.http" .) (include "azureml-fe.https" .)) }}
{{- fail "allowInsecureConnections is false and there is no certificate, so the router could not serve requests: set sslSecret to a Secret with cert.pem and key.pem (or give sslCertPemFile and sslKeyPemFile), or set allowInsecureConnections=true for plain HTTP" }}
{{- end }}
{{- if and .Values.sslSecret (or .Values.sslCertPemFile .Values.sslKeyPemFile) }}
{{- fail "sslSecret and sslCertPemFile/sslKeyPemFile exclude each other: the Secret is either yours or created by the chart" }}
{{- end }}
{{- if ne (empty .Values.sslCertPemFile) (empty .Values.sslKeyPemFile) }}
{{- fail "sslCertPemFile and sslKeyPemFile belong together: set both with --set-file" }}
{{- end }}
{{- $maxPods := get .Values.router "self_scaling_max_pods" }}
{{- if and $maxPods (lt (int $maxPods) (include "azureml-fe.minPods" . | int)) }}
{{- fail (printf "router.self_scaling_max_pods=%d is below the minimum number of pods, %s: raise it, lower router.self_scaling_min_pods, or set inferenceRouterHA=false" (int $maxPods) (include "azureml-fe.minPods" .)) }}
{{- end }}
{{- if and .Values.peers.tlsSecret (has (toString (get .Values.router "peer_tls")) (list "off" "false")) }}
{{- fail "router.peer_tls=off and peers.tlsSecret exclude each other: a mounted certificate enables TLS between router pods" }}
{{- end }}
{{- if and .Values.sslClientCaSecret (not (include "azureml-fe.https" .)) }}
{{- fail "sslClientCaSecret needs sslSecret: only HTTPS has client certificates" }}
{{- end }}
{{- if and (eq .Values.internalLoadBalancerProvider "azure") (ne (include "azureml-fe.serviceType" .) "LoadBalancer") }}
{{- fail (printf "internalLoadBalancerProvider=azure needs inferenceRouterServiceType=loadBalancer, not %s" .Values.inferenceRouterServiceType) }}
{{- end }}
{{- end }}

{{/* The names under which clients in the cluster reach the admin port, and those of `router.admin_hosts`, by comma. */}}
{{- define "azureml-fe.adminHosts" -}}
{{- $service := printf "%s-admin" (include "azureml-fe.fullname" .) -}}
{{- $name := printf "%s.%s" $service .Release.Namespace -}}
{{- $hosts := list $service $name (printf "%s.svc" $name) (printf "%s.svc.cluster.local" $name) -}}
{{- with get .Values.router "admin_hosts" -}}
{{- if kindIs "string" . }}{{ $hosts = append $hosts . }}{{ else }}{{ $hosts = concat $hosts . }}{{ end -}}
{{- end -}}
{{ join "," $hosts }}
{{- end }}

{{/* router.yaml: the settings of `azureml-fe serve`. */}}
{{- define "azureml-fe.config" -}}
{{- $derived := dict
    "cluster_purpose" .Values.clusterPurpose
    "shutdown_delay_seconds" .Values.shutdown.delaySeconds
    "drain_seconds" .Values.shutdown.drainSeconds
    "generate_keys" .Values.generateKeys
    "allow_insecure_connections" (eq (include "azureml-fe.http" .) "true")
-}}
{{- $switches := dict -}}
{{- if .Values.namespaces }}{{ $derived = set $derived "namespaces" (join "," .Values.namespaces) }}{{ end -}}
{{- $name := include "azureml-fe.fullname" . -}}
{{- if ne $name "azureml-fe" }}{{ $derived = set $derived "router_name" $name }}{{ end -}}
{{- if include "azureml-fe.https" . -}}
{{- $derived = set $derived "tls_cert_file" "/etc/azureml-fe/tls/cert.pem" -}}
{{- $derived = set $derived "tls_key_file" "/etc/azureml-fe/tls/key.pem" -}}
{{- end -}}
{{- if .Values.sslClientCaSecret }}{{ $derived = set $derived "tls_client_ca_file" "/etc/azureml-fe/client-ca/ca.pem" }}{{ end -}}
{{- if .Values.appInsightsSecret -}}
{{- $derived = set $derived "app_insights_connection_string_file" "/etc/azureml-fe/app-insights/connection-string" -}}
{{- end -}}
{{- if .Values.peers.tlsSecret -}}
{{- $derived = set $derived "peer_tls_cert_file" "/etc/azureml-fe/peers-tls/tls.crt" -}}
{{- $derived = set $derived "peer_tls_key_file" "/etc/azureml-fe/peers-tls/tls.key" -}}
{{- $derived = set $derived "peer_tls_ca_file" "/etc/azureml-fe/peers-tls/ca.crt" -}}
{{- end -}}
{{- with (.Values.dynamicConfig | default dict).configMap }}{{ $derived = set $derived "dynamic_config_map" . }}{{ end -}}
{{- if include "azureml-fe.selfScaling" . -}}
{{- $derived = set $derived "self_scaling_min_pods" (include "azureml-fe.minPods" . | int) -}}
{{- end -}}
{{- range $name, $value := .Values.router -}}
{{- /* YAML 1.1 parses `off` as false and `on` as true. */ -}}
{{- if and (kindIs "bool" $value) (has $name (list "http2" "metrics_push" "peer_tls" "traces")) -}}
{{- $switches = set $switches $name (ternary "on" "off" $value) -}}
{{- end -}}
{{- end -}}
router:
  {{- $adminHosts := dict "admin_hosts" (include "azureml-fe.adminHosts" .) }}
  {{- mergeOverwrite $derived .Values.router $switches $adminHosts | toYaml | nindent 2 }}
{{- with .Values.tokenIssuers }}
token_issuers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
