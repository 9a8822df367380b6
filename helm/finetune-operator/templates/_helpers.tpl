{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "finetune-operator.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "finetune-operator.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* A Service's name has at most 63 characters. */ -}}
{{- define "finetune-operator.metricsService" -}}
{{- printf "%s-metrics" (include "finetune-operator.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{- /* Cluster-scoped names carry the namespace, so that two releases of one name do not fight over them. */ -}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be given when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: finetune
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Reference of an image; takes the image's values and the tag used when they name none. */ -}}
{{- define "finetune-operator.image" -}}
{{- $name := printf "%s/%s" .image.registry .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .defaultTag .image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Fails if a label or annotation has a key of the operator or of the Job controller; takes field and keys. */ -}}
{{- define "finetune-operator.checkKeys" -}}
{{- $field := .field -}}
{{- range $key, $_ := .keys -}}
{{- if or (regexMatch "^(finetune[.]dev|batch[.]kubernetes[.]io)/" $key) (regexMatch "^app[.]kubernetes[.]io/(name|component|managed-by)$" $key) (has $key (list "job-name" "controller-uid")) -}}
{{- fail (printf "trainer.podDefaults.%s must not use keys that belong to the operator or to Kubernetes, found %s" $field $key) -}}
{{- end -}}
{{- if and (hasPrefix "object" $field) (hasPrefix "kueue.x-k8s.io/" $key) -}}
{{- fail (printf "trainer.podDefaults.%s must not use keys of Kueue, because it would suspend the Jobs that the operator starts, found %s" $field $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Fails on pod defaults that the schema cannot reject with a clear message. */ -}}
{{- define "finetune-operator.checkPodDefaults" -}}
{{- $pods := . | default dict -}}
{{- range $stage := list "" "prepare" "train" "merge" -}}
{{- $block := ternary $pods (index $pods $stage) (eq $stage "") | default dict -}}
{{- range $field := list "labels" "annotations" "objectLabels" "objectAnnotations" -}}
{{- $path := ternary $field (printf "%s.%s" $stage $field) (eq $stage "") -}}
{{- include "finetune-operator.checkKeys" (dict "field" $path "keys" (index $block $field)) -}}
{{- end -}}
{{- end -}}
{{- include "finetune-operator.checkSecurity" (dict "field" "trainer.podDefaults.securityContext" "given" $pods.securityContext) -}}
{{- end -}}

{{- /* Fails if a security context has ids of its own and leaves them to the cluster; takes field and given values. */ -}}
{{- define "finetune-operator.checkSecurity" -}}
{{- $given := .given | default dict -}}
{{- if and (eq (default "" $given.ids) "Assigned") (or $given.runAsUser $given.runAsGroup $given.fsGroup) -}}
{{- fail (printf "%s must have no runAsUser, runAsGroup and fsGroup with ids: Assigned" .field) -}}
{{- end -}}
{{- end -}}

{{- /* The security context of the operator's pods, with the values that are given. */ -}}
{{- define "finetune-operator.podSecurity" -}}
{{- $given := . | default dict -}}
{{- include "finetune-operator.checkSecurity" (dict "field" "securityContext" "given" $given) -}}
{{- $context := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if ne (default "Fixed" $given.ids) "Assigned" -}}
{{- $context = merge $context (dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532) -}}
{{- end -}}
{{- toYaml (merge (omit $given "ids" "seccompProfile") (ternary (dict) (dict "seccompProfile" $given.seccompProfile) (empty $given.seccompProfile)) $context) -}}
{{- end -}}

{{- /* The members of a mapping that are set, as JSON. */ -}}
{{- define "finetune-operator.given" -}}
{{- $given := dict -}}
{{- range $name, $value := . -}}
{{- if $value -}}
{{- $_ := set $given $name $value -}}
{{- end -}}
{{- end -}}
{{- toJson $given -}}
{{- end -}}

{{- /* Fails if prices have no currency: the schema cannot say which value is missing. */ -}}
{{- define "finetune-operator.checkCost" -}}
{{- $cost := . | default dict -}}
{{- if and $cost.prices (not $cost.currency) -}}
{{- fail "cost.currency must be the ISO 4217 code of cost.prices, such as EUR, found none" -}}
{{- end -}}
{{- end -}}

{{- /* The operator's settings file. */ -}}
{{- define "finetune-operator.settings" -}}
{{- $trainer := .Values.trainer -}}
{{- include "finetune-operator.checkPodDefaults" $trainer.podDefaults -}}
{{- include "finetune-operator.checkCost" .Values.cost -}}
{{- /* Values of an earlier release have no podDefaults. The operator then uses its own. */ -}}
{{- $pods := dict -}}
{{- if not (kindIs "invalid" $trainer.podDefaults) -}}
{{- $pods = dict "podDefaults" (include "finetune-operator.given" $trainer.podDefaults | fromJson) -}}
{{- end -}}
{{- dict
  "trainer" (merge $pods (dict
    "image" (include "finetune-operator.image" (dict "image" $trainer.image "defaultTag" .Chart.AppVersion))
    "imagePullPolicy" $trainer.image.pullPolicy
    "device" $trainer.device
    "telemetryPort" $trainer.telemetryPort
    "huggingFaceEndpoint" $trainer.huggingFaceEndpoint
    "resources" $trainer.resources
    "limits" $trainer.limits
    "network" $trainer.network
    "tracking" (default dict $trainer.tracking)
    "nccl" (default dict $trainer.nccl)
    "topologyKeys" (default list $trainer.topologyKeys)
    "stackProfile" $trainer.stackProfile))
  "gpuProfiles" .Values.gpuProfiles
  "policy" (pick (default dict .Values.policy) "limits" "exceptions")
  "allowTimeSlicing" .Values.allowTimeSlicing
  "jobSets" .Values.jobSets
  "calibration" .Values.calibration
  "cost" (default dict .Values.cost)
  "watchNamespaces" (default list .Values.watchNamespaces)
  "workers" .Values.workers
  "client" .Values.client
  "resyncSeconds" .Values.resyncSeconds
  "progressSeconds" .Values.progressSeconds
  "startSeconds" (default 300 .Values.startSeconds)
  "metricsPort" .Values.ports.metrics
  "healthPort" .Values.ports.health
  "metrics" (default dict .Values.metrics)
  "leaderElection" .Values.leaderElection
  "logLevel" .Values.logLevel
  | toPrettyJson -}}
{{- end -}}
