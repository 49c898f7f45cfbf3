{{/* Names. */}}
{{- define "fairserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 40 characters leave room for what is appended, within the 63 of a Service's name. */}}
{{- define "fairserve.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of objects that belong to no namespace: two releases must not share them. */}}
{{- define "fairserve.clusterName" -}}
{{- printf "%s-%s" (include "fairserve.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "fairserve.operatorName" -}}
{{- printf "%s-operator" (include "fairserve.fullname" .) }}
{{- end }}

{{- define "fairserve.webhookName" -}}
{{- printf "%s-webhook" (include "fairserve.fullname" .) }}
{{- end }}

{{- define "fairserve.vllmName" -}}
{{- printf "%s-vllm" (include "fairserve.fullname" .) }}
{{- end }}

{{- define "fairserve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "fairserve.operatorName" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "fairserve.vllmNamespace" -}}
{{- default .Release.Namespace .Values.vllm.namespace }}
{{- end }}

{{/* What a Deployment and a Service select by; never changes within a release. */}}
{{- define "fairserve.selector" -}}
app.kubernetes.io/name: {{ include "fairserve.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fairserve.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "_" | trunc 63)
  "app.kubernetes.io/managed-by" .root.Release.Service
  "app.kubernetes.io/part-of" "fairserve" }}
{{- $own = merge $own (include "fairserve.selector" . | fromYaml) }}
{{- toYaml (merge $own (default dict .labels) .root.Values.commonLabels) }}
{{- end }}

{{/*
Labels and annotations of an object: root, component, and its own `labels` and `annotations`. What the chart needs
counts before what an object is given, and that before what all are given.
*/}}
{{- define "fairserve.metadata" -}}
labels:
  {{- include "fairserve.labels" . | nindent 2 }}
{{- with merge dict (default dict .fixed) (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Those of a Pod template, without what changes with each version of the chart. */}}
{{- define "fairserve.podMetadata" -}}
labels:
  {{- $own := merge (include "fairserve.selector" . | fromYaml) (default dict .fixedLabels) }}
  {{- toYaml (merge $own .labels .root.Values.commonLabels) | nindent 2 }}
{{- with merge dict .annotations .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image: root, image, and the tag where the image has none. */}}
{{- define "fairserve.image" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry }}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .root.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}

{{- define "fairserve.imagePullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "fairserve.priorityClassName" -}}
{{- if .Values.operator.priorityClassName }}
{{- .Values.operator.priorityClassName }}
{{- else if .Values.operator.priorityClass.create }}
{{- include "fairserve.clusterName" . }}
{{- end }}
{{- end }}

{{/* Mistakes that a schema can't see. */}}
{{- define "fairserve.check" -}}
{{- if and .Values.vllm.enabled .Values.namespaces (not (has (include "fairserve.vllmNamespace" .) .Values.namespaces)) }}
{{- fail (printf "vllm.namespace: the operator doesn't serve the namespace %q: add it to namespaces" (include "fairserve.vllmNamespace" .)) }}
{{- end }}
{{- if and .Values.vllm.enabled (not .Values.webhook.enabled) }}
{{- fail "vllm.enabled needs webhook.enabled: its Pods get their sidecar from the webhook" }}
{{- end }}
{{- if eq (int .Values.operator.port) (int .Values.webhook.port) }}
{{- fail (printf "operator.port and webhook.port must differ: both are %d" (int .Values.operator.port)) }}
{{- end }}
{{- if ge (int .Values.operator.preStopSeconds) (int .Values.operator.terminationGracePeriodSeconds) }}
{{- fail "operator.preStopSeconds must be less than operator.terminationGracePeriodSeconds" }}
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.sidecars.namespaces .Values.namespaces }}
{{- range .Values.networkPolicy.sidecars.namespaces }}
{{- if not (has . $.Values.namespaces) }}
{{- fail (printf "networkPolicy.sidecars.namespaces: the operator doesn't serve the namespace %q: add it to namespaces" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
