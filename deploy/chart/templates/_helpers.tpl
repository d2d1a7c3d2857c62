{{- define "devwatch.labels" -}}
app.kubernetes.io/name: devwatch
app.kubernetes.io/component: daemon
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
