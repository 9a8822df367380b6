{{- /* The limits as a CEL map. A member that is null is no limit. */ -}}
{{- define "finetune-operator.celLimits" -}}
{{- $entries := list -}}
{{- range $name, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $entries = append $entries (printf "%s: dyn(%s)" (toJson $name) (toJson $value)) -}}
{{- end -}}
{{- end -}}
{ {{- join ", " $entries -}} }
{{- end -}}

{{- /* All namespaces with an exception, as a list of JSON. */ -}}
{{- define "finetune-operator.exceptedNamespaces" -}}
{{- $names := list -}}
{{- range (default dict .Values.policy).exceptions -}}
{{- range .namespaces -}}
{{- if has . $names -}}
{{- fail (printf "policy.exceptions must name each namespace once, found %s more than once" .) -}}
{{- end -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{- /*
A policy and its binding; takes the root, a name, limits and requirements on the namespace's name.
finetune_operator.api.policy has the same rules, and a test on a real API server compares the verdicts and the messages.
*/ -}}
{{- define "finetune-operator.admissionPolicy" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ .name }}
  labels:
    {{- include "finetune-operator.labels" .root | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    # A spec cannot change afterwards. A job that exists may be suspended and deleted, whatever the policy is now.
    resourceRules:
      - apiGroups: [finetune.dev]
        apiVersions: ["*"]
        operations: [CREATE]
        resources: [finetunejobs]
  variables:
    - name: limits
      expression: {{ include "finetune-operator.celLimits" .limits | toJson }}
    - name: blocks
      expression: "['spec.podTemplate', 'spec.podTemplate.prepare', 'spec.podTemplate.train', 'spec.podTemplate.merge']"
    - name: pods
      expression: >-
        {'spec.podTemplate': object.spec.?podTemplate.orValue({}),
         'spec.podTemplate.prepare': object.spec.?podTemplate.?prepare.orValue({}),
         'spec.podTemplate.train': object.spec.?podTemplate.?train.orValue({}),
         'spec.podTemplate.merge': object.spec.?podTemplate.?merge.orValue({})}
    - name: destinations
      expression: object.spec.output.?destinations.orValue([])
    # Each name with its field and its limit; empty if it is missing.
    - name: names
      expression: >-
        [{'limit': dyn('serviceAccountNames'), 'field': dyn('spec.podTemplate.serviceAccountName'),
          'value': object.spec.?podTemplate.?serviceAccountName.orValue('')},
         {'limit': dyn('priorityClassNames'), 'field': dyn('spec.resources.priorityClassName'),
          'value': object.spec.?resources.?priorityClassName.orValue('')}]
        + variables.blocks.map(b, {'limit': dyn('priorityClassNames'), 'field': dyn(b + '.priorityClassName'),
          'value': variables.pods[b].?priorityClassName.orValue('')})
        + [{'limit': dyn('runtimeClassNames'), 'field': dyn('spec.resources.runtimeClassName'),
          'value': object.spec.?resources.?runtimeClassName.orValue('')}]
        + variables.blocks.map(b, {'limit': dyn('runtimeClassNames'), 'field': dyn(b + '.runtimeClassName'),
          'value': variables.pods[b].?runtimeClassName.orValue('')})
        + variables.blocks.map(b, {'limit': dyn('schedulerNames'), 'field': dyn(b + '.schedulerName'),
          'value': variables.pods[b].?schedulerName.orValue('')})
        + [{'limit': dyn('queueNames'), 'field': dyn('spec.queueName'), 'value': object.spec.?queueName.orValue('')},
         {'limit': dyn('queueNames'), 'field': dyn('spec.cpuQueueName'), 'value': object.spec.?cpuQueueName.orValue('')}]
        + variables.blocks.map(b, {'limit': dyn('queueNames'), 'field': dyn(b + '.labels[kueue.x-k8s.io/queue-name]'),
          'value': dyn(variables.pods[b].?labels[?'kueue.x-k8s.io/queue-name'].orValue(''))})
        + [{'limit': dyn('gpuResourceNames'), 'field': dyn('spec.resources.gpuResourceName'),
          'value': object.spec.?resources.?gpuResourceName.orValue('nvidia.com/gpu')}]
        + object.spec.model.source.map(k, {'limit': dyn('modelSources'), 'field': dyn('spec.model.source'), 'value': k})
        + object.spec.dataset.source.map(k, {'limit': dyn('datasetSources'), 'field': dyn('spec.dataset.source'), 'value': k})
        + object.spec.dataset.?validation.?source.orValue({}).map(k, {'limit': dyn('datasetSources'),
          'field': dyn('spec.dataset.validation.source'), 'value': k})
        + object.spec.output.?destination.orValue({}).map(k, {'limit': dyn('destinationKinds'),
          'field': dyn('spec.output.destination'), 'value': k})
        + variables.destinations.map(d, {'limit': dyn('destinationKinds'),
          'field': dyn('spec.output.destinations[' + d.name + ']'),
          'value': dyn(d.filter(k, !(k in ['name', 'overwrite'])).join(''))})
    - name: otherNames
      expression: >-
        variables.names.filter(n, n.value != '' && n.limit in variables.limits
          && !(n.value in variables.limits[n.limit])).map(n, n.field
          + (variables.limits[n.limit].size() == 0 ? ' must be left out' :
             ' must be one of ' + variables.limits[n.limit].join(', ')) + ', found ' + n.value)
    - name: missingQueue
      expression: >-
        variables.limits.?queueNameRequired.orValue(false) && object.spec.?queueName.orValue('') == ''
          ? ['spec.queueName must be set, found none'] : []
    - name: manyGpus
      expression: >-
        'gpus' in variables.limits && object.spec.?resources.?gpus.orValue(1) > variables.limits.gpus
          ? ['spec.resources.gpus must be at most ' + string(variables.limits.gpus) + ', found '
             + string(object.spec.?resources.?gpus.orValue(1))] : []
    - name: highMaximum
      expression: >-
        'gpus' in variables.limits && object.spec.?resources.?maximumGpus.orValue(1) > variables.limits.gpus
          ? ['spec.resources.maximumGpus must be at most ' + string(variables.limits.gpus) + ', found '
             + string(object.spec.?resources.?maximumGpus.orValue(1))] : []
    # Node labels: a selector is a label and one value, and a requirement of a term may have any operator.
    - name: nodeLabels
      expression: variables.limits.?nodeLabels.orValue({})
    - name: onlyNodeLabels
      expression: {{ include "finetune-operator.onlyNodeLabels" .limits | toJson }}
    - name: selectors
      expression: >-
        'nodeLabels' in variables.limits
          ? [{'field': dyn('spec.resources.nodeSelector'), 'labels': object.spec.?resources.?nodeSelector.orValue({})}]
            + variables.blocks.map(b, {'field': dyn(b + '.nodeSelector'),
              'labels': variables.pods[b].?nodeSelector.orValue({})})
          : []
    - name: otherSelectors
      expression: >-
        variables.selectors.map(s, s.labels.filter(k, !(k in variables.nodeLabels
          && (variables.nodeLabels[k].size() == 0 || s.labels[k] in variables.nodeLabels[k]))).map(k,
          s.field + variables.onlyNodeLabels + ', found ' + k + '=' + s.labels[k]).join('; '))
    - name: requirements
      expression: >-
        'nodeLabels' in variables.limits
          ? variables.blocks.map(b, {'field': dyn(b + '.nodeSelectorTerms'),
              'terms': variables.pods[b].?nodeSelectorTerms.orValue([])})
          : []
    - name: otherRequirements
      expression: >-
        variables.requirements.map(s, s.terms.map(t, t.matchExpressions.filter(r, !(r.key in variables.nodeLabels
          && (variables.nodeLabels[r.key].size() == 0
            || (r.operator == 'In' && r.?values.orValue([]).all(v, v in variables.nodeLabels[r.key]))))).map(r,
          s.field + variables.onlyNodeLabels + ', found '
          + (r.key + ' ' + r.operator + ' ' + r.?values.orValue([]).join('|')).trim()).join('; '))
          .filter(text, text != '').join('; '))
    # Tolerations: one that matches more taints than an allowed one is refused.
    - name: tolerations
      expression: >-
        'tolerations' in variables.limits
          ? [{'field': dyn('spec.resources.tolerations'), 'list': object.spec.?resources.?tolerations.orValue([])}]
            + variables.blocks.map(b, {'field': dyn(b + '.tolerations'),
              'list': variables.pods[b].?tolerations.orValue([])})
          : []
    - name: otherTolerations
      expression: >-
        variables.tolerations.map(s, s.list.filter(t, !variables.limits.tolerations.exists(a,
          t.?key.orValue('') == a.key
          && (!('value' in a) || (t.?operator.orValue('Equal') != 'Exists' && t.?value.orValue('') == a.value))
          && (!('effect' in a) || t.?effect.orValue('') == a.effect))).map(t,
          s.field + {{ include "finetune-operator.onlyTolerations" .limits }} + ', found ' + t.?key.orValue('*') + '='
          + (t.?operator.orValue('Equal') == 'Exists' ? '*' : t.?value.orValue('')) + ':' + t.?effect.orValue('*'))
          .join('; '))
    # URLs. The CRD allows neither a user nor a query in them.
    - name: urls
      expression: >-
        [{'limit': dyn('endpointHosts'), 'field': dyn('spec.model.source.s3.endpoint'),
          'value': object.spec.model.source.?s3.?endpoint.orValue('')},
         {'limit': dyn('endpointHosts'), 'field': dyn('spec.dataset.source.s3.endpoint'),
          'value': object.spec.dataset.source.?s3.?endpoint.orValue('')},
         {'limit': dyn('endpointHosts'), 'field': dyn('spec.dataset.validation.source.s3.endpoint'),
          'value': object.spec.dataset.?validation.?source.?s3.?endpoint.orValue('')}]
        + variables.destinations.map(d, {'limit': dyn('endpointHosts'),
          'field': dyn('spec.output.destinations[' + d.name + '].s3.endpoint'),
          'value': dyn(d.?s3.?endpoint.orValue(''))})
        + variables.destinations.map(d, {'limit': dyn('endpointHosts'),
          'field': dyn('spec.output.destinations[' + d.name + '].oci.reference'),
          'value': dyn('oci' in d ? 'oci://' + d.oci.reference : '')})
        + [{'limit': dyn('endpointHosts'), 'field': dyn('spec.tracking.mlflow.uri'),
          'value': object.spec.?tracking.?mlflow.?uri.orValue('')},
         {'limit': dyn('endpointHosts'), 'field': dyn('spec.tracking.modelRegistry.uri'),
          'value': object.spec.?tracking.?modelRegistry.?uri.orValue('')},
         {'limit': dyn('endpointHosts'), 'field': dyn('spec.network.huggingFaceEndpoint'),
          'value': object.spec.?network.?huggingFaceEndpoint.orValue('')}]
        + [{'limit': dyn('proxyHosts'), 'field': dyn('spec.network.httpsProxy'),
          'value': object.spec.?network.?httpsProxy.orValue('')},
         {'limit': dyn('proxyHosts'), 'field': dyn('spec.network.httpProxy'),
          'value': object.spec.?network.?httpProxy.orValue('')}]
      # A limit that is missing allows every host.
    - name: limitedUrls
      expression: variables.urls.filter(u, u.value != '' && u.limit in variables.limits)
    - name: hosts
      expression: >-
        variables.limitedUrls.map(u, {'limit': u.limit, 'field': u.field, 'value': u.value,
          'host': dyn(u.value.lowerAscii().split('/')[2].startsWith('[')
            ? u.value.lowerAscii().split('/')[2].split(']')[0] + ']'
            : u.value.lowerAscii().split('/')[2].split(':')[0])})
    - name: otherHosts
      expression: >-
        variables.hosts.filter(u, !variables.limits[u.limit].exists(h,
          u.host == h || (h.startsWith('.') && u.host.endsWith(h)))).map(u, u.field
          + (variables.limits[u.limit].size() == 0 ? ' must be left out' :
             ' must have one of the hosts ' + variables.limits[u.limit].join(', ')) + ', found ' + u.value)
    - name: violations
      expression: >-
        (variables.otherNames + variables.missingQueue + variables.manyGpus + variables.highMaximum + variables.otherSelectors
          + variables.otherRequirements + variables.otherTolerations + variables.otherHosts).filter(text, text != '')
  validations:
    - expression: variables.violations.size() == 0
      # The API server drops a message of several lines.
      messageExpression: variables.violations.join('; ').replace('\n', ' ')
      message: must obey the limits of the chart's policy, found several violations
      reason: Forbidden
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "finetune-operator.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
  {{- with .namespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
        {{- toYaml . | nindent 8 }}
  {{- end }}
{{- end -}}

{{- /* CEL text of the allowed node labels. */ -}}
{{- define "finetune-operator.onlyNodeLabels" -}}
{{- $texts := list -}}
{{- range $key, $values := .nodeLabels | default dict -}}
{{- $texts = append $texts (printf "%s=%s" $key (default "*" (join "|" $values))) -}}
{{- end -}}
{{- ternary (printf " must have only %s" (join ", " $texts)) " must be left out" (not (empty $texts)) | toJson -}}
{{- end -}}

{{- /* CEL text of the allowed tolerations. */ -}}
{{- define "finetune-operator.onlyTolerations" -}}
{{- $texts := list -}}
{{- range .tolerations | default list -}}
{{- $value := ternary "*" (toString .value) (kindIs "invalid" .value) -}}
{{- $texts = append $texts (printf "%s=%s:%s" .key $value (default "*" .effect)) -}}
{{- end -}}
{{- ternary (printf " must have only %s" (join ", " $texts)) " must be left out" (not (empty $texts)) | toJson -}}
{{- end -}}
