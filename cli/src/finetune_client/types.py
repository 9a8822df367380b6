"""The FineTuneJob as typed dictionaries.

`scripts/docs/generate.py` generates this module from `crds/finetunejobs.yaml`. Edit that file instead.
"""

from __future__ import annotations

from typing import Any, Literal, Required, TypedDict


class FineTuneJobSpecModelSourcePersistentVolumeClaim(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    claimName: Required[str]
    path: str


class FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    name: Required[str]
    key: Required[str]


class FineTuneJobSpecModelSourceHuggingFace(TypedDict, total=False):
    """Model repository on the Hugging Face Hub."""

    repository: Required[str]
    revision: str
    tokenSecretRef: FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef


class FineTuneJobSpecModelSourceS3SecretRef(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    name: Required[str]


class FineTuneJobSpecModelSourceS3(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    uri: Required[str]
    endpoint: str
    region: str
    secretRef: FineTuneJobSpecModelSourceS3SecretRef


class FineTuneJobSpecModelSourceGcs(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    uri: Required[str]
    secretRef: FineTuneJobSpecModelSourceS3SecretRef


class FineTuneJobSpecModelSource(TypedDict, total=False):
    """Location of the base model."""

    persistentVolumeClaim: FineTuneJobSpecModelSourcePersistentVolumeClaim
    huggingFace: FineTuneJobSpecModelSourceHuggingFace
    s3: FineTuneJobSpecModelSourceS3
    gcs: FineTuneJobSpecModelSourceGcs
    azure: FineTuneJobSpecModelSourceGcs


class FineTuneJobSpecModelChatTemplate(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    configMapKeyRef: Required[FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef]


class FineTuneJobSpecModel(TypedDict, total=False):
    """Base model and its chat template."""

    source: Required[FineTuneJobSpecModelSource]
    chatTemplate: FineTuneJobSpecModelChatTemplate
    chatTemplateArguments: dict[str, Any]


class FineTuneJobSpecDatasetSourcePersistentVolumeClaim(TypedDict, total=False):
    """File on a volume."""

    claimName: Required[str]
    path: Required[str]


class FineTuneJobSpecDatasetSourceUrl(TypedDict, total=False):
    """An https URL."""

    secretKeyRef: Required[FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef]


class FineTuneJobSpecDatasetSourceHuggingFace(TypedDict, total=False):
    """Dataset repository on the Hugging Face Hub."""

    repository: Required[str]
    revision: str
    configuration: str
    split: str
    path: str
    tokenSecretRef: FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef


class FineTuneJobSpecDatasetSource(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    configMap: FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef
    persistentVolumeClaim: FineTuneJobSpecDatasetSourcePersistentVolumeClaim
    url: FineTuneJobSpecDatasetSourceUrl
    huggingFace: FineTuneJobSpecDatasetSourceHuggingFace
    s3: FineTuneJobSpecModelSourceS3
    gcs: FineTuneJobSpecModelSourceGcs
    azure: FineTuneJobSpecModelSourceGcs


class FineTuneJobSpecDatasetValidation(TypedDict, total=False):
    """Rows for comparing the base model with the tuned model."""

    fraction: float
    source: FineTuneJobSpecDatasetSource


class FineTuneJobSpecDatasetRejectedRows(TypedDict, total=False):
    """Limit on rejected rows."""

    maximumFraction: float


class FineTuneJobSpecDatasetThresholds(TypedDict, total=False):
    """Thresholds for the warnings in status.dataset.warnings."""

    refusedFraction: float
    duplicateFraction: float
    nearDuplicateFraction: float
    nearDuplicateSimilarity: float
    leakedFraction: float
    emptyAnswerFraction: float
    repeatedAnswerFraction: float
    mixedReasoningFraction: float
    reasoningAsTextFraction: float
    shortenedFraction: float
    minimumRows: int
    minimumPromptVariety: float
    minimumLanguageFraction: float
    maximumCapacityRatio: float
    minimumCoverage: float
    targetSimilarity: float


class FineTuneJobSpecDataset(TypedDict, total=False):
    """Conversations for training and validation."""

    source: Required[FineTuneJobSpecDatasetSource]
    format: Literal["Auto", "Messages", "PromptCompletion", "Alpaca", "ShareGPT", "Text"]
    validation: FineTuneJobSpecDatasetValidation
    reasoning: Literal["Keep", "Strip"]
    controlTokens: Literal["Reject", "Escape"]
    rejectedRows: FineTuneJobSpecDatasetRejectedRows
    targetPrompts: FineTuneJobSpecModelChatTemplate
    thresholds: FineTuneJobSpecDatasetThresholds


class FineTuneJobSpecTrainingLora(TypedDict, total=False):
    """Settings of the low-rank adapter."""

    rank: int
    alpha: int
    dropout: float
    targetModules: Literal["AllLinear", "AttentionOnly"]
    variant: Literal["Standard", "RankStabilized", "DoRA"]


class FineTuneJobSpecTrainingEarlyStopping(TypedDict, total=False):
    """Ends training if the loss on held-out rows stops improving."""

    patience: int
    intervalSteps: int
    minimumImprovement: float
    maximumRows: int


class FineTuneJobSpecTrainingSchedule(TypedDict, total=False):
    """Change of the learning rate over the steps."""

    type: Literal["Cosine", "Linear", "Constant"]
    warmupRatio: float


class FineTuneJobSpecTrainingCheckpoint(TypedDict, total=False):
    """Checkpoints in the workspace."""

    intervalSteps: int
    keep: Literal["Last", "Best"]


class FineTuneJobSpecTraining(TypedDict, total=False):
    """Settings for training the adapter."""

    epochs: float
    maximumSteps: int
    learningRate: float
    effectiveBatchSize: int
    microBatchSize: int
    maximumLength: int
    lora: FineTuneJobSpecTrainingLora
    quantization: Literal["NF4"]
    seed: int
    weightDecay: float
    maximumGradientNorm: float
    neftuneNoiseAlpha: float
    routerAuxLossCoefficient: float
    packing: Literal["Auto", "Never"]
    kernels: Literal["Auto", "Reference"]
    parallelism: Literal["Auto", "DataParallel", "FullyShard"]
    earlyStopping: FineTuneJobSpecTrainingEarlyStopping
    schedule: FineTuneJobSpecTrainingSchedule
    gradientCheckpointing: Literal["Auto", "Require", "Forbid"]
    checkpoint: FineTuneJobSpecTrainingCheckpoint


class FineTuneJobSpecEvaluation(TypedDict, total=False):
    """Comparison of the base model and the tuned model on validation rows."""

    maximumRows: int
    minimumRows: int
    gate: Literal["Report", "WithholdIfWorse", "WithholdUnlessImproved"]
    generatedRows: int
    metrics: list[Literal["ExactMatch", "JsonValid", "JsonFields"]]
    samplePrompts: list[str]


class FineTuneJobSpecOutputSigning(TypedDict, total=False):
    """Signs the statement over the published files."""

    keySecretRef: Required[FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef]


class FineTuneJobSpecOutputDestination(TypedDict, total=False):
    """Location for the published artifacts, if there is only one and it is a claim."""

    persistentVolumeClaim: Required[FineTuneJobSpecModelSourcePersistentVolumeClaim]


class FineTuneJobSpecOutputDestinationsOci(TypedDict, total=False):
    """Tag in an OCI registry."""

    imageTag: str
    reference: Required[str]
    secretRef: FineTuneJobSpecModelSourceS3SecretRef


class FineTuneJobSpecOutputDestinationsHuggingFace(TypedDict, total=False):
    """Model repository on the Hugging Face Hub."""

    repository: Required[str]
    private: bool
    revision: str
    tokenSecretRef: Required[FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef]


class FineTuneJobSpecOutputDestinations(TypedDict, total=False):
    """One location."""

    name: Required[str]
    overwrite: bool
    persistentVolumeClaim: FineTuneJobSpecModelSourcePersistentVolumeClaim
    s3: FineTuneJobSpecModelSourceS3
    gcs: FineTuneJobSpecModelSourceGcs
    azure: FineTuneJobSpecModelSourceGcs
    oci: FineTuneJobSpecOutputDestinationsOci
    huggingFace: FineTuneJobSpecOutputDestinationsHuggingFace


class FineTuneJobSpecOutput(TypedDict, total=False):
    """Artifacts to publish and their destination."""

    artifacts: list[Literal["Adapter", "Merged", "BaseAsTrained"]]
    dtype: Literal["BFloat16", "AsBase"]
    mergeOnto: Literal["TrainedWeights", "OriginalWeights"]
    reports: Literal["Workspace", "Destinations"]
    signing: FineTuneJobSpecOutputSigning
    destination: FineTuneJobSpecOutputDestination
    destinations: list[FineTuneJobSpecOutputDestinations]


class FineTuneJobSpecResourcesPrepare(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    cpu: int | str
    memory: int | str


class FineTuneJobSpecResourcesTolerations(TypedDict, total=False):
    """One toleration, as in a pod spec."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    tolerationSeconds: int


class FineTuneJobSpecResources(TypedDict, total=False):
    """Compute resources and scheduling constraints of the stages."""

    gpus: int
    gpusPerNode: int
    maximumGpus: int
    rightSize: Literal["Allow", "Forbid"]
    gpuResourceName: str
    prepare: FineTuneJobSpecResourcesPrepare
    train: FineTuneJobSpecResourcesPrepare
    merge: FineTuneJobSpecResourcesPrepare
    nodeSelector: dict[str, str]
    tolerations: list[FineTuneJobSpecResourcesTolerations]
    runtimeClassName: str
    priorityClassName: str


class FineTuneJobSpecPodTemplateNodeSelectorTermsMatchExpressions(TypedDict, total=False):
    """One requirement."""

    key: Required[str]
    operator: Required[Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]]
    values: list[str]


class FineTuneJobSpecPodTemplateNodeSelectorTerms(TypedDict, total=False):
    """One term."""

    matchExpressions: Required[list[FineTuneJobSpecPodTemplateNodeSelectorTermsMatchExpressions]]


class FineTuneJobSpecPodTemplateSecurityContextSeccompProfile(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    type: Required[Literal["RuntimeDefault", "Localhost"]]
    localhostProfile: str


class FineTuneJobSpecPodTemplateSecurityContextSeLinuxOptions(TypedDict, total=False):
    """Parts of the SELinux label."""

    type: str
    level: str


class FineTuneJobSpecPodTemplateSecurityContext(TypedDict, total=False):
    """Additions to the security context."""

    ids: Literal["Fixed", "Assigned"]
    runAsUser: int
    runAsGroup: int
    fsGroup: int
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"]
    supplementalGroups: list[int]
    supplementalGroupsPolicy: Literal["Merge", "Strict"]
    seccompProfile: FineTuneJobSpecPodTemplateSecurityContextSeccompProfile
    appArmorProfile: FineTuneJobSpecPodTemplateSecurityContextSeccompProfile
    seLinuxOptions: FineTuneJobSpecPodTemplateSecurityContextSeLinuxOptions


class FineTuneJobSpecPodTemplatePrepare(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    labels: dict[str, str]
    annotations: dict[str, str]
    nodeSelector: dict[str, str]
    nodeSelectorTerms: list[FineTuneJobSpecPodTemplateNodeSelectorTerms]
    tolerations: list[FineTuneJobSpecResourcesTolerations]
    runtimeClassName: str
    priorityClassName: str
    schedulerName: str
    cpuLimit: int | str
    ephemeralStorage: int | str
    ephemeralStorageLimit: int | str


class FineTuneJobSpecPodTemplate(TypedDict, total=False):
    """Additions to the pods of every stage."""

    serviceAccountName: str
    imagePullSecrets: list[FineTuneJobSpecModelSourceS3SecretRef]
    labels: dict[str, str]
    annotations: dict[str, str]
    objectLabels: dict[str, str]
    objectAnnotations: dict[str, str]
    nodeSelector: dict[str, str]
    nodeSelectorTerms: list[FineTuneJobSpecPodTemplateNodeSelectorTerms]
    tolerations: list[FineTuneJobSpecResourcesTolerations]
    runtimeClassName: str
    priorityClassName: str
    schedulerName: str
    cpuLimit: int | str
    ephemeralStorage: int | str
    ephemeralStorageLimit: int | str
    securityContext: FineTuneJobSpecPodTemplateSecurityContext
    prepare: FineTuneJobSpecPodTemplatePrepare
    train: FineTuneJobSpecPodTemplatePrepare
    merge: FineTuneJobSpecPodTemplatePrepare


class FineTuneJobSpecWorkspace(TypedDict, total=False):
    """Volume that passes data from one stage to the next."""

    size: int | str
    storageClassName: str
    existingClaim: str


class FineTuneJobSpecModelCache(TypedDict, total=False):
    """Volume for sharing quantized base models between jobs."""

    claimName: Required[str]


class FineTuneJobSpecNetworkCaBundle(TypedDict, total=False):
    """Certificate authorities to trust in addition to the system's, as PEM."""

    configMapKeyRef: FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef
    secretKeyRef: FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef


class FineTuneJobSpecNetwork(TypedDict, total=False):
    """Ways to reach hubs, stores and URLs."""

    httpsProxy: str
    httpProxy: str
    noProxy: str
    proxySecretRef: FineTuneJobSpecModelSourceHuggingFaceTokenSecretRef
    caBundle: FineTuneJobSpecNetworkCaBundle
    huggingFaceEndpoint: str
    retrySeconds: int


class FineTuneJobSpecTrackingMlflow(TypedDict, total=False):
    """MLflow tracking server."""

    uri: Required[str]
    experiment: str
    registeredModel: str
    secretRef: FineTuneJobSpecModelSourceS3SecretRef


class FineTuneJobSpecTrackingModelRegistry(TypedDict, total=False):
    """Kubeflow model registry."""

    uri: Required[str]
    registeredModel: str
    secretRef: FineTuneJobSpecModelSourceS3SecretRef


class FineTuneJobSpecTracking(TypedDict, total=False):
    """Trackers that get a record of the run after MERGE."""

    mlflow: FineTuneJobSpecTrackingMlflow
    modelRegistry: FineTuneJobSpecTrackingModelRegistry


class FineTuneJobSpecLifecycleKeepChildrenSeconds(TypedDict, total=False):
    """Retention of a stage's Job and pod after the stage ends, for debugging."""

    success: int
    failure: int


class FineTuneJobSpecLifecycle(TypedDict, total=False):
    """Limits, retries and retention."""

    deadlineSeconds: int
    noProgressSeconds: int
    retries: int
    keepChildrenSeconds: FineTuneJobSpecLifecycleKeepChildrenSeconds
    keepWorkspace: Literal["Always", "OnFailure", "Never"]


class FineTuneJobSpec(TypedDict, total=False):
    """Desired training run."""

    model: Required[FineTuneJobSpecModel]
    dataset: Required[FineTuneJobSpecDataset]
    training: FineTuneJobSpecTraining
    evaluation: FineTuneJobSpecEvaluation
    output: Required[FineTuneJobSpecOutput]
    resources: FineTuneJobSpecResources
    podTemplate: FineTuneJobSpecPodTemplate
    workspace: FineTuneJobSpecWorkspace
    modelCache: FineTuneJobSpecModelCache
    network: FineTuneJobSpecNetwork
    tracking: FineTuneJobSpecTracking
    queueName: str
    cpuQueueName: str
    lifecycle: FineTuneJobSpecLifecycle
    suspend: bool


class FineTuneJobStatusConditions(TypedDict, total=False):
    """One aspect of the job's state."""

    type: Required[str]
    status: Required[Literal["True", "False", "Unknown"]]
    observedGeneration: int
    lastTransitionTime: Required[str]
    reason: Required[str]
    message: Required[str]


class FineTuneJobStatusTrainer(TypedDict, total=False):
    """The trainer of the last PREPARE that had a result, also of a failed one."""

    contractVersion: str
    image: str


class FineTuneJobStatusPlanChoices(TypedDict, total=False):
    """One chosen value."""

    name: Required[str]
    value: Required[str]
    reason: Required[str]


class FineTuneJobStatusPlanTraining(TypedDict, total=False):
    """Values that determine the run, chosen or from the spec."""

    microBatchSize: int
    gradientAccumulationSteps: int
    gradientCheckpointing: bool
    optimizer: str
    weights: str
    sequenceLength: int
    learningRate: str
    nodes: int
    gpusPerNode: int
    parallelism: str


class FineTuneJobStatusPlanLadder(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    microBatchSize: int
    gradientCheckpointing: bool
    optimizer: str
    weights: str


class FineTuneJobStatusPlanGpu(TypedDict, total=False):
    """Smallest GPU, in the cluster or in gpuProfiles, on which the plan fits."""

    product: str
    usableBytes: int
    offers: list[str]


class FineTuneJobStatusPlanMemoryTerms(TypedDict, total=False):
    """One term of the estimate."""

    name: Required[str]
    bytes: Required[int]
    phase: Required[str]


class FineTuneJobStatusPlanMemory(TypedDict, total=False):
    """Estimated memory of TRAIN on that GPU, in bytes."""

    peakBytes: int
    deviceBytes: int
    lowBytes: int
    highBytes: int
    bottleneck: str
    terms: list[FineTuneJobStatusPlanMemoryTerms]


class FineTuneJobStatusPlanDurationParts(TypedDict, total=False):
    """One part of the time."""

    name: Required[str]
    seconds: Required[int]


class FineTuneJobStatusPlanDuration(TypedDict, total=False):
    """Estimated time of one attempt of TRAIN without interruption, on any of the GPUs that the plan fits."""

    lowSeconds: int
    expectedSeconds: int
    highSeconds: int
    gpuHours: str
    steps: int
    tokens: int
    tokensPerSecond: str
    parts: list[FineTuneJobStatusPlanDurationParts]
    source: str
    reason: str


class FineTuneJobStatusPlanCost(TypedDict, total=False):
    """Estimated cost of this time by cost.prices of the chart."""

    low: str
    expected: str
    high: str
    currency: str
    reason: str


class FineTuneJobStatusPlanHosts(TypedDict, total=False):
    """One stage of the job."""

    stage: Required[Literal["Prepare", "Train", "Merge"]]
    memoryBytes: Required[int]
    reason: Required[str]


class FineTuneJobStatusPlan(TypedDict, total=False):
    """Values that the operator chose for unset fields, and the memory that TRAIN needs."""

    choices: list[FineTuneJobStatusPlanChoices]
    warnings: list[str]
    training: FineTuneJobStatusPlanTraining
    ladder: list[FineTuneJobStatusPlanLadder]
    gpu: FineTuneJobStatusPlanGpu
    memory: FineTuneJobStatusPlanMemory
    duration: FineTuneJobStatusPlanDuration
    cost: FineTuneJobStatusPlanCost
    stack: str
    calibration: str
    hosts: list[FineTuneJobStatusPlanHosts]


class FineTuneJobStatusWaiting(TypedDict, total=False):
    """Time that the job waits for a GPU, in a queue or while Stalled."""

    since: str
    totalSeconds: int


class FineTuneJobStatusStageGpuTime(TypedDict, total=False):
    """Time for which the pods of this attempt of TRAIN hold GPUs."""

    podUid: str
    startTime: str
    endTime: str
    earlierSeconds: int
    gpus: int
    product: str
    pricePerGpuHour: str
    currency: str


class FineTuneJobStatusStage(TypedDict, total=False):
    """Stage that is running, is waiting or ended last."""

    name: Literal["Prepare", "Train", "Merge"]
    attempt: int
    jobName: str
    node: str
    startTime: str
    retryTime: str
    imagePullSeconds: int
    gpuTime: FineTuneJobStatusStageGpuTime


class FineTuneJobStatusUsageCost(TypedDict, total=False):
    """Cost of the GPU time, each with the price of its start."""

    amount: str
    wasted: str
    currency: str


class FineTuneJobStatusUsage(TypedDict, total=False):
    """GPU time that all ended attempts of TRAIN have used, and its cost."""

    gpuSeconds: int
    wastedGpuSeconds: int
    unpricedGpuSeconds: int
    product: str
    cost: FineTuneJobStatusUsageCost


class FineTuneJobStatusProgress(TypedDict, total=False):
    """Latest progress of the running stage."""

    stage: Literal["Prepare", "Train", "Merge"]
    activity: str
    step: int
    totalSteps: int
    percent: str
    loss: str
    tokensPerSecond: str
    estimatedCompletionTime: str
    updateTime: str


class FineTuneJobStatusDatasetRejected(TypedDict, total=False):
    """One reason and its count."""

    reason: Required[str]
    rows: Required[int]


class FineTuneJobStatusDatasetFormat(TypedDict, total=False):
    """Row format of the dataset."""

    name: str
    why: str


class FineTuneJobStatusDatasetLanguages(TypedDict, total=False):
    """One language."""

    code: Required[str]
    fraction: Required[str]


class FineTuneJobStatusDatasetCoverage(TypedDict, total=False):
    """Similarity of the training prompts to the target prompts."""

    targets: int
    covered: int


class FineTuneJobStatusDatasetEndTokens(TypedDict, total=False):
    """One of these tokens."""

    id: Required[int]
    text: Required[str]


class FineTuneJobStatusDatasetWarnings(TypedDict, total=False):
    """One warning."""

    code: Required[str]
    value: str
    threshold: str
    message: Required[str]


class FineTuneJobStatusDatasetExample(TypedDict, total=False):
    """Decoded labels of one row, for visual inspection."""

    row: int
    learned: str


class FineTuneJobStatusDataset(TypedDict, total=False):
    """Summary of the dataset report from PREPARE."""

    digest: str
    rows: int
    kept: int
    duplicates: int
    rejected: list[FineTuneJobStatusDatasetRejected]
    trainingExamples: int
    validationExamples: int
    supervisedTokens: int
    longestExample: int
    trainingTokens: int
    format: FineTuneJobStatusDatasetFormat
    source: dict[str, str]
    validationSource: dict[str, str]
    nearDuplicates: int
    leaked: int
    languages: list[FineTuneJobStatusDatasetLanguages]
    reasoningFraction: str
    promptVariety: str
    capacityRatio: str
    coverage: FineTuneJobStatusDatasetCoverage
    shortened: int
    endTokens: list[FineTuneJobStatusDatasetEndTokens]
    warnings: list[FineTuneJobStatusDatasetWarnings]
    example: FineTuneJobStatusDatasetExample


class FineTuneJobStatusModel(TypedDict, total=False):
    """Base model after quantization by PREPARE."""

    architecture: str
    parameters: int
    commit: str
    digest: str
    config: str
    trace: str
    traceProblem: str
    quantizedModules: int
    bytes: int


class FineTuneJobStatusEvaluationByRow(TypedDict, total=False):
    """Members that several fields share; docs/reference/api.md describes each."""

    base: str
    tuned: str
    difference: str
    interval: list[str]


class FineTuneJobStatusEvaluationMetrics(TypedDict, total=False):
    """One metric."""

    name: Required[Literal["ExactMatch", "JsonValid", "JsonFields"]]
    rows: int
    base: str
    tuned: str
    difference: str
    interval: list[str]
    reason: str


class FineTuneJobStatusEvaluation(TypedDict, total=False):
    """Loss on validation rows before and after training, in nats per supervised token."""

    rows: int
    baseLoss: str
    tunedLoss: str
    difference: str
    interval: list[str]
    verdict: Literal["Improved", "NoChange", "Worse", "Inconclusive"]
    neededRows: int
    byRow: FineTuneJobStatusEvaluationByRow
    tokenAccuracy: FineTuneJobStatusEvaluationByRow
    metrics: list[FineTuneJobStatusEvaluationMetrics]


class FineTuneJobStatusBatching(TypedDict, total=False):
    """Forward passes of the examples of a step."""

    kind: str
    budgetTokens: int
    realTokens: str
    reason: str


class FineTuneJobStatusAttention(TypedDict, total=False):
    """Attention of the forward passes of TRAIN."""

    backend: str
    reason: str


class FineTuneJobStatusKernels(TypedDict, total=False):
    """Fused kernels of the steps of TRAIN."""

    used: list[str]
    reason: str


class FineTuneJobStatusSelection(TypedDict, total=False):
    """Decisions by the loss on held-out rows, with training.earlyStopping or checkpoint.keep `Best`."""

    rows: int
    measurements: int
    plannedSteps: int
    publishedStep: int
    stoppedEarly: bool
    bestStep: int
    bestLoss: str


class FineTuneJobStatusVerification(TypedDict, total=False):
    """Comparison of the merged model with the values that TRAIN recorded."""

    verdict: Literal["Proven", "Unproven"]
    rows: int
    tokens: int
    klDivergence: str
    baseDivergence: str
    noiseDivergence: str
    slope: str
    slopeTolerance: str
    survivingUpdate: str
    weakestTensor: str
    weakestSurvival: str
    trainedLoss: str
    mergedLoss: str
    adapterOnOriginalLoss: str
    prompt: str
    answer: str
    warnings: list[FineTuneJobStatusDatasetWarnings]


class FineTuneJobStatusAttemptsFailedRungs(TypedDict, total=False):
    """Values that hold a step of training in memory."""

    microBatchSize: int
    gradientCheckpointing: bool
    optimizer: str
    weights: str
    activity: str
    step: int
    allocatedBytes: int
    reservedBytes: int


class FineTuneJobStatusAttemptsMemory(TypedDict, total=False):
    """Estimated and measured GPU memory of TRAIN, in bytes."""

    estimatedBytes: int
    estimatedDeviceBytes: int
    allocatedBytes: int
    reservedBytes: int
    deviceBytes: int
    usableBytes: int
    loadBytes: int


class FineTuneJobStatusAttemptsPods(TypedDict, total=False):
    """The end of one pod."""

    index: Required[int]
    first: Required[bool]
    node: str
    rank: int
    reason: str
    exitCode: int
    completionTime: str


class FineTuneJobStatusAttempts(TypedDict, total=False):
    """One attempt of one stage."""

    stage: Required[Literal["Prepare", "Train", "Merge"]]
    attempt: Required[int]
    outcome: Required[Literal["Succeeded", "Failed", "Interrupted"]]
    reason: str
    message: str
    startTime: str
    completionTime: str
    exitCode: int
    imagePullSeconds: int
    peakMemoryBytes: int
    gpuSeconds: int
    gpuProduct: str
    tokensPerSecond: str
    rung: FineTuneJobStatusPlanLadder
    failedRungs: list[FineTuneJobStatusAttemptsFailedRungs]
    memory: FineTuneJobStatusAttemptsMemory
    node: str
    rank: int
    pods: list[FineTuneJobStatusAttemptsPods]


class FineTuneJobStatusArtifacts(TypedDict, total=False):
    """One artifact."""

    kind: Required[Literal["Adapter", "Merged", "BaseAsTrained"]]
    uri: Required[str]
    digest: str
    bytes: int
    files: int
    baseDigest: str


class FineTuneJobStatusPublications(TypedDict, total=False):
    """One destination."""

    name: Required[str]
    uri: Required[str]
    digest: str


class FineTuneJobStatusTracking(TypedDict, total=False):
    """One tracker."""

    kind: Required[Literal["MLflow", "KubeflowModelRegistry"]]
    run: str
    model: str


class FineTuneJobStatusFailure(TypedDict, total=False):
    """Cause of the job's failure."""

    stage: Literal["Prepare", "Train", "Merge"]
    reason: str
    message: str
    logTail: list[str]


class FineTuneJobStatus(TypedDict, total=False):
    """State that the operator observed and values that it chose."""

    observedGeneration: int
    phase: Literal[
        "Pending", "Preparing", "Training", "Merging", "Stalled", "Suspended", "Succeeded", "Failed"
    ]
    specHash: str
    startTime: str
    completionTime: str
    conditions: list[FineTuneJobStatusConditions]
    trainer: FineTuneJobStatusTrainer
    plan: FineTuneJobStatusPlan
    waiting: FineTuneJobStatusWaiting
    stage: FineTuneJobStatusStage
    usage: FineTuneJobStatusUsage
    progress: FineTuneJobStatusProgress
    dataset: FineTuneJobStatusDataset
    model: FineTuneJobStatusModel
    evaluation: FineTuneJobStatusEvaluation
    batching: FineTuneJobStatusBatching
    attention: FineTuneJobStatusAttention
    kernels: FineTuneJobStatusKernels
    selection: FineTuneJobStatusSelection
    verification: FineTuneJobStatusVerification
    attempts: list[FineTuneJobStatusAttempts]
    artifacts: list[FineTuneJobStatusArtifacts]
    publications: list[FineTuneJobStatusPublications]
    tracking: list[FineTuneJobStatusTracking]
    failure: FineTuneJobStatusFailure


class FineTuneJob(TypedDict, total=False):
    """A FineTuneJob as the API server stores it."""

    apiVersion: str
    kind: str
    metadata: Required[dict[str, Any]]
    spec: Required[FineTuneJobSpec]
    status: FineTuneJobStatus
