{{/* One policy: (list root component ingress-rules egress-rules). Nothing given: nothing said of that direction. */}}
{{- define "interp.network" }}
{{- $root := index . 0 }}{{- $component := index . 1 }}{{- $ingress := index . 2 }}{{- $egress := index . 3 }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "interp.fullname" $root }}-{{ $component }}
  labels: {{- include "interp.labels" (list $root "network") | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "interp.selector" (list $root $component) | nindent 6 }}
  policyTypes: [{{ if $ingress }}Ingress{{ end }}{{ if and $ingress $egress }}, {{ end }}{{ if $egress }}Egress{{ end }}]
  {{- with $ingress }}
  ingress: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $egress }}
  egress: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- define "interp.peers" -}}
{{- $root := index . 0 -}}
{{- range index . 1 }}
- podSelector:
    matchLabels: {{- include "interp.selector" (list $root .) | nindent 6 }}
{{- end }}
{{- end }}
{{- define "interp.onPort" -}}
{{- list (dict "port" (int .) "protocol" "TCP") | toJson -}}
{{- end }}
