{{- define "devwatch.labels" -}}
app.kubernetes.io/name: devwatch
app.kubernetes.io/component: daemon
{{- end }}

{{- /* For every template that reads a key which an older chart did not have: --reuse-values replaces the defaults of this chart by those of
the former one. */}}
{{- define "devwatch.requireDefaults" }}
{{- range list "devicePlugin" "dra" "namespace" }}
  {{- if not (hasKey $.Values .) }}
    {{- fail (printf "%s is missing: --reuse-values has dropped the defaults of this chart. Upgrade with --reset-then-reuse-values (Helm 3.14), or with --values and the file of your values" .) }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "devwatch.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The names of the configured resources as a JSON list. Refuses what a schema cannot say. */}}
{{- define "devwatch.names" -}}
{{- $names := list }}
{{- range $index, $resource := .Values.config.resources }}
  {{- if has $resource.name $names }}
    {{- fail (printf "config.resources[%d].name: %s is taken (each name once)" $index $resource.name) }}
  {{- end }}
  {{- if or (contains "kubernetes.io/" $resource.name) (hasPrefix "requests." $resource.name) }}
    {{- fail (printf "config.resources[%d].name: %s is kept for Kubernetes itself (your own prefix, such as example.com/zigbee)" $index $resource.name) }}
  {{- end }}
  {{- $names = append $names $resource.name }}
{{- end }}
{{- toJson $names }}
{{- end }}

{{- /* Binds the daemon's account to the ClusterRole of the same name. */}}
{{- define "devwatch.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "devwatch.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: devwatch
    namespace: {{ .namespace }}
{{- end }}

{{- /* What lets the Pods into a namespace where Pod Security is enforced. */}}
{{- define "devwatch.podSecurity" -}}
pod-security.kubernetes.io/enforce: privileged
pod-security.kubernetes.io/audit: privileged
pod-security.kubernetes.io/warn: privileged
{{- end }}

{{- /* The Namespace of the release as JSON; {} where there is none yet, without a cluster, and where it is not to be looked at. */}}
{{- define "devwatch.namespace" -}}
{{- $found := dict }}
{{- if .Values.namespace.label }}{{ $found = lookup "v1" "Namespace" "" .Release.Namespace }}{{ end }}
{{- toJson $found }}
{{- end }}

{{- /* Not empty where the release makes its Namespace: with Helm 4 on a cluster (each has kube-system), and only if the Namespace is not
there yet or this release has made it. `helm template` shows none: what it prints may be deleted as a whole. */}}
{{- define "devwatch.ownsNamespace" -}}
{{- if and .Values.namespace.label (semverCompare ">=4.0.0-0" .Capabilities.HelmVersion.Version) }}
  {{- if lookup "v1" "Namespace" "" "kube-system" }}
    {{- $found := include "devwatch.namespace" . | fromJson }}
    {{- if or (not $found) (eq .Release.Name (dig "metadata" "annotations" "meta.helm.sh/release-name" "" $found)) }}yes{{ end }}
  {{- end }}
{{- end }}
{{- end }}
