-- The conditions are the operator's word; the phase is for printing. A status that describes an older spec proves nothing.
local status = obj.status or {}
local conditions = {}
for _, entry in ipairs(status.conditions or {}) do
  conditions[entry.type] = entry
end
local function condition(name)
  return conditions[name] or {}
end
local function described(entry)
  return (entry.reason or "") .. ": " .. (entry.message or "")
end
-- What a notification about the end says: the cost, and the place that holds the report.
local function result(entry)
  local text = entry.message or ""
  local cost = (status.usage or {}).cost
  if cost ~= nil then
    text = text .. "; cost " .. cost.amount .. " " .. cost.currency
  end
  local publication, artifact = (status.publications or {})[1], (status.artifacts or {})[1]
  if publication ~= nil then
    text = text .. "; report with the artifacts at " .. publication.uri
  elseif artifact ~= nil then
    text = text .. "; report beside " .. artifact.uri
  end
  return text
end

-- Terminal is for ever. So an end counts even before the operator has seen the newest generation.
local succeeded = condition("Succeeded")
if succeeded.status == "True" then
  return {status = "Healthy", message = result(succeeded)}
end
if succeeded.status == "False" then
  return {status = "Degraded", message = described(succeeded)}
end
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Waiting for the operator"}
end
local stalled = condition("Stalled")
if stalled.status == "True" then
  -- Notifications tell a job that waits from one that has failed by this word.
  return {status = "Degraded", message = "Stalled: " .. described(stalled)}
end
-- A queue or an administrator also suspends, and ends it without the user. Such a job is Progressing.
local suspended, reconciling = condition("Suspended"), condition("Reconciling")
if suspended.status == "True" and reconciling.status ~= "True" then
  return {status = "Suspended", message = suspended.message}
end
return {status = "Progressing", message = reconciling.message or "Running"}
