"""Every route of the pinned MLflow, by the name of the function behind it: read, ruled or closed.

A function serves the same act on /api/2.0, /api/3.0 and /ajax-api alike, so naming it covers them all. What is named nowhere is
refused if it writes; tests/test_guard.py lists what this MLflow really serves and fails on a name that is missing here.
"""

from __future__ import annotations

# ruled: function → rule, by its path in rules.Rules
RULED: dict[str, str] = {
    # registry
    "_create_registered_model": "versions.create_model",
    "_update_registered_model": "versions.describe",
    "_update_model_version": "versions.describe",
    "_create_model_version": "versions.create",
    "_set_registered_model_tag": "models.tag",
    "_delete_registered_model_tag": "models.delete_tag",
    "_set_model_version_tag": "versions.tag",
    "_delete_model_version_tag": "versions.delete_tag",
    "_set_registered_model_alias": "releases.alias",
    "_delete_registered_model_alias": "releases.delete_alias",
    "_transition_stage": "versions.stage",
    "_rename_registered_model": "versions.keep",
    "_delete_registered_model": "versions.keep",
    "_delete_model_version": "versions.keep",
    "_delete_logged_model": "versions.keep",
    "_delete_artifact_mlflow_artifacts": "versions.keep",
    # experiments, runs and logged models: one's own
    "_create_experiment": "own.create_experiment",
    "_set_experiment_tag": "own.tag_experiment",
    "_create_run": "own.create_run",
    "_update_run": "own.run",
    "_log_metric": "own.run",
    "_log_param": "own.run",
    "_set_tag": "own.run",
    "_delete_tag": "own.run",
    "_log_batch": "own.run",
    "_log_model": "own.run",
    "_log_inputs": "own.run",
    "_log_outputs": "own.run",
    "_create_logged_model": "own.create_logged_model",
    "_finalize_logged_model": "own.logged_model",
    "_set_logged_model_tags": "own.logged_model",
    "_delete_logged_model_tag": "own.logged_model",
    "_log_logged_model_params": "own.logged_model",
    # GraphQL reads; webhooks: nobody's, because the registry would call where somebody points it
    "_graphql": "graphql",
    "_create_webhook": "webhook",
    "_update_webhook": "webhook",
    "_delete_webhook": "webhook",
    "_test_webhook": "webhook",
    # users, roles and permissions: nobody's, because logins are files
    "create_user": "user",
    "update_user_password": "user",
    "update_user_admin": "user",
    "delete_user": "user",
    "create_role": "user",
    "update_role": "user",
    "delete_role": "user",
    "assign_role": "user",
    "unassign_role": "user",
    "add_role_permission": "user",
    "remove_role_permission": "user",
    "update_role_permission": "user",
    "grant_user_permission": "user",
    "revoke_user_permission": "user",
    "get_user": "user",
    "list_users": "user",
    "get_role": "user",
    "list_roles": "user",
    "list_role_permissions": "user",
    "list_role_users": "user",
    "list_user_roles": "user",
    "list_user_permissions": "user",
}

# of the ruled: many, and without power; only their refusals are audited (a version's bytes are bound by its payload)
UNAUDITED = frozenset(function for function, rule in RULED.items() if rule.startswith("own.") or rule == "graphql") - {
    "_create_experiment",
    "_set_experiment_tag",
}

# answered without a login: nothing is told there
PUBLIC = frozenset({"health", "serve_static_file", "static", "_get_server_info"})

# reads, also those that MLflow sends as POST; `serve_post_ui_telemetry` answers "disabled" and keeps nothing
READS = frozenset(
    """
    _batch_get_trace_infos _batch_get_traces _calculate_trace_filter_correlation _deprecated_get_trace_info_v2
    _deprecated_search_traces_v2 _download_artifact _get_assessment _get_budget_policy
    _get_dataset_experiment_ids_handler _get_dataset_handler _get_dataset_records_handler _get_experiment
    _get_experiment_by_name _get_gateway_endpoint _get_gateway_guardrail _get_gateway_model_definition _get_issue
    _get_job _get_label_schema _get_label_schema_by_name _get_latest_versions _get_logged_model _get_metric_history
    _get_model_version _get_model_version_by_alias _get_model_version_download_uri _get_online_scoring_configs
    _get_presigned_download_url _get_prompt_optimization_job _get_registered_model _get_review_queue
    _get_review_queue_by_name _get_run _get_scorer _get_server_info _get_trace _get_trace_info_v3 _get_webhook
    _get_workspace_handler _list_artifacts _list_artifacts_mlflow_artifacts _list_budget_policies
    _list_budget_windows _list_endpoint_guardrail_configs _list_gateway_endpoint_bindings _list_gateway_endpoints
    _list_gateway_guardrails _list_gateway_model_definitions _list_label_schemas _list_logged_model_artifacts
    _list_review_queue_items _list_review_queues _list_scorer_versions _list_scorers _list_webhooks
    _list_workspaces_handler _query_trace_metrics _search_evaluation_datasets_handler _search_experiments
    _search_issues _search_logged_models _search_model_versions _search_prompt_optimization_jobs
    _search_registered_models _search_runs _search_traces_v3 get_current_user
    get_metric_history_bulk_interval_handler get_user_permission health list_current_user_permissions serve
    serve_artifacts serve_get_logged_model_artifact serve_get_metric_history_bulk
    serve_get_metric_history_bulk_interval serve_get_trace_artifact serve_get_ui_telemetry
    serve_model_version_artifact serve_post_ui_telemetry serve_search_datasets serve_static_file static version
    """.split()  # noqa: SIM905 - one name a line would be pages
)

# known, and of no use here: refused to everybody (the lists of providers and their models are fetched from the net)
CLOSED = frozenset(
    """
    <lambda> _abort_multipart_upload_artifact _add_dataset_to_experiments_handler _add_guardrail_to_endpoint
    _add_items_to_review_queue _attach_model_to_gateway_endpoint _cancel_job _cancel_prompt_optimization_job
    _complete_multipart_upload_artifact _create_assessment _create_budget_policy _create_dataset_handler
    _create_gateway_endpoint _create_gateway_endpoint_binding _create_gateway_guardrail
    _create_gateway_model_definition _create_gateway_secret _create_issue _create_label_schema
    _create_multipart_upload_artifact _create_presigned_download_url _create_presigned_upload_url
    _create_prompt_optimization_job _create_review_queue _create_workspace_handler _delete_assessment
    _delete_budget_policy _delete_dataset_handler _delete_dataset_records_handler _delete_dataset_tag_handler
    _delete_demo _delete_experiment _delete_experiment_tag _delete_gateway_endpoint _delete_gateway_endpoint_binding
    _delete_gateway_endpoint_tag _delete_gateway_guardrail _delete_gateway_model_definition _delete_gateway_secret
    _delete_label_schema _delete_prompt_optimization_job _delete_review_queue _delete_run _delete_scorer
    _delete_trace_tag _delete_trace_tag_v3 _delete_traces _delete_workspace_handler _deprecated_end_trace_v2
    _deprecated_start_trace_v2 _detach_model_from_gateway_endpoint _generate_demo _get_gateway_secret_info
    _get_or_create_user_queue _get_provider_config _get_secrets_config _invoke_genai_evaluate_handler
    _invoke_issue_detection_handler _invoke_scorer_handler _link_prompts_to_trace _link_traces_to_run
    _list_gateway_secrets _list_supported_models _list_supported_providers _not_implemented _register_scorer
    _remove_dataset_from_experiments_handler _remove_guardrail_from_endpoint _remove_items_from_review_queue
    _restore_experiment _restore_run _set_dataset_tags_handler _set_gateway_endpoint_tag
    _set_review_queue_item_status _set_trace_tag _set_trace_tag_v3 _start_trace_v3 _update_assessment
    _update_budget_policy _update_endpoint_guardrail_config _update_experiment _update_gateway_endpoint
    _update_gateway_model_definition _update_gateway_secret _update_issue _update_label_schema _update_review_queue
    _update_workspace_handler _upload_artifact _upsert_dataset_records_handler _upsert_online_scoring_config
    serve_create_promptlab_run serve_gateway_proxy serve_upload_artifact signup
    """.split()  # noqa: SIM905 - one name a line would be pages
)

# the same for routes that FastAPI serves itself, past Flask's hooks; the first we serve ourselves (`native`)
NATIVE_OURS = frozenset({"download_artifact", "upload_artifact"})
NATIVE_READS = frozenset(
    """
    get_job get_mcp_access_endpoint get_mcp_server get_mcp_server_version get_server_info
    get_version_by_alias health list_models search_all_access_endpoints search_jobs search_mcp_server_versions
    search_mcp_servers search_server_access_endpoints
    """.split()  # noqa: SIM905 - one name a line would be pages
)
NATIVE_CLOSED = frozenset(
    """
    anthropic_passthrough_messages cancel_job chat_completions create_mcp_access_endpoint create_mcp_server
    create_mcp_server_version delete_mcp_access_endpoint delete_mcp_server delete_mcp_server_alias
    delete_mcp_server_tag delete_mcp_server_version delete_mcp_server_version_tag export_traces
    gemini_passthrough_generate_content gemini_passthrough_stream_generate_content get_config get_providers
    install_skills_endpoint invocations list_provider_models openai_passthrough_chat openai_passthrough_embeddings
    openai_passthrough_responses openai_passthrough_responses_compact patch_session provider_health_check raw_proxy
    resolve_client_tool_result resolve_permission send_message set_mcp_server_alias set_mcp_server_tag
    set_mcp_server_version_tag stream_response submit_job typesafe_passthrough_system_one update_config
    update_mcp_access_endpoint update_mcp_server update_mcp_server_version
    """.split()  # noqa: SIM905 - one name a line would be pages
)
