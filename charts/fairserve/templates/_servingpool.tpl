{{/*
Helm looks up every kind before it creates anything, so that an object of a kind that the same release brings can't be
installed with it. Then NOTES.txt says what to do.
*/}}
{{- define "fairserve.rendersServingPool" -}}
{{- if and .Values.vllm.enabled .Values.vllm.servingPool.create }}
{{- or (not .Values.crds.enabled) (.Capabilities.APIVersions.Has "fairserve.dev/v1alpha1/ServingPool") }}
{{- end }}
{{- end }}

{{- define "fairserve.servingPool" -}}
apiVersion: fairserve.dev/v1alpha1
kind: ServingPool
metadata:
  name: {{ .Values.vllm.pool }}
  namespace: {{ include "fairserve.vllmNamespace" . }}
  {{- include "fairserve.metadata" (dict "root" . "component" "vllm") | nindent 2 }}
spec:
  {{- $selector := dict "matchLabels" (include "fairserve.selector" (dict "root" . "component" "vllm") | fromYaml) }}
  {{- toYaml (merge (dict "selector" $selector) .Values.vllm.servingPool.spec) | nindent 2 }}
{{- end }}
