-- The spec of a job cannot change, and its end is for ever. So a retry is a new job with the same spec.
-- It belongs to the failed job: Argo CD shows it below that job, and both are removed together.
local os = require("os")

-- Lua does not tell an empty list from an empty object. An empty value means the default here, so it is left out.
local function copied(value)
  if type(value) ~= "table" then
    return value
  end
  local result = nil
  for key, item in pairs(value) do
    local inner = copied(item)
    if inner ~= nil then
      result = result or {}
      result[key] = inner
    end
  end
  return result
end

-- But an empty tracking stands for no tracker, and without it the record of the run would go to those of the chart.
if obj.spec.tracking ~= nil and next(obj.spec.tracking) == nil then
  error("spec.tracking is empty, which this action cannot copy; run: finetune retry " .. obj.metadata.name)
end

-- Argo CD loads no string library, so a long name is not cut but replaced. A name has at most 45 characters.
local time = os.date("!%y%m%d%H%M%S")
local name = obj.metadata.name .. "-" .. time
if #name > 45 then
  name = "retry-" .. time
end

local job = {
  apiVersion = obj.apiVersion,
  kind = obj.kind,
  metadata = {
    name = name,
    namespace = obj.metadata.namespace,
    annotations = {["finetune.dev/retry-of"] = obj.metadata.name},
    ownerReferences = {
      {apiVersion = obj.apiVersion, kind = obj.kind, name = obj.metadata.name, uid = obj.metadata.uid},
    },
  },
  spec = copied(obj.spec),
}
job.spec.suspend = nil
-- The folder of a claim is the name of the job by default. So the retry publishes where the failed job would have.
local places = {job.spec.output.destination}
for _, place in ipairs(job.spec.output.destinations or {}) do
  places[#places + 1] = place
end
for _, place in ipairs(places) do
  local claim = place.persistentVolumeClaim
  if claim ~= nil and claim.path == nil then
    claim.path = obj.metadata.name
  end
end
-- Argo CD would prune a job with its own label, because Git does not contain it.
for key, value in pairs(obj.metadata.labels or {}) do
  if key ~= "app.kubernetes.io/instance" and key ~= "argocd.argoproj.io/instance" then
    job.metadata.labels = job.metadata.labels or {}
    job.metadata.labels[key] = value
  end
end
return {{operation = "create", resource = job}}
